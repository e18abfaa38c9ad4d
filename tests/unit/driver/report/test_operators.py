from petra_deploy.core.operators import OpsReport, Profiled
from petra_deploy.driver.layers import changes, stayed_float
from petra_deploy.driver.report.operators import text
from tests.unit.driver.test_layers import BASE, NEW


def test_the_table_has_a_line_a_layer_and_the_sentences_say_what_lost() -> None:
    report = OpsReport(
        target="cpu", engine="new", base="old", profiled=Profiled(engine=NEW, base=BASE, warnings=("it was loud",)),
        changes=changes(BASE, NEW), stayed_float=stayed_float(NEW),
    )  # fmt: skip
    lines = text(report).splitlines()
    assert lines[0].split() == ["layer", "before", "us", "after", "us", "difference,", "us", "of", "it", "conversions"]
    assert [line.split()[0] for line in lines[1:4]] == ["conv2", "conv1", "fc"]
    assert "1 of 3 layers are faster, 1 slower, 1 the same within their intervals" in lines
    assert lines[lines.index("slower:") + 1].startswith("  conv1: QLinearConv 41 us -> Conv 88 us")
    assert lines[lines.index("stayed float:") + 1].startswith("  conv1 (Conv 88 us): model.onnx has")
    assert lines[-1] == "warning: it was loud"


def test_one_engine_alone_has_one_column() -> None:
    report = OpsReport(target="cpu", engine="new", profiled=Profiled(engine=NEW), changes=changes(None, NEW))
    assert text(report).splitlines()[1].split() == ["conv1", "Conv", "fp32", "88", "8.0"]
