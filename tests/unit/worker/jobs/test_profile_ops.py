"""Real engines, exported and quantized by our own techniques, profiled by their runtimes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from petra_deploy.core import machine, registry
from petra_deploy.core.job import Build, ProfileOps, Transform
from petra_deploy.core.operators import OpsProfile, Profiled
from petra_deploy.core.outcome import Engine, Failed
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.layers import changes, stayed_float
from petra_deploy.testing.inline import Inline
from tests.models import CASES
from tests.unit.worker.nets import CPU

OPENVINO = replace(CPU, runtime="openvino", precisions=("fp32", "int8"))
FEW = {"rounds": 2, "seconds": 0.02}


def engine(store: Store, case: str, technique: str = "", runtime: str = "onnxruntime") -> Engine:
    steps = (Step(technique=technique),) if technique else ()
    workload = CASES[case]().workload(store)
    graph = Inline(store).must(Transform(workload=workload, strategy=Strategy(steps=steps)))
    return Inline(store).must(Build(graph=graph, target=replace(CPU, runtime=runtime)))


def profiled(store: Store, new: Engine, base: Engine | None = None) -> Profiled:
    split = CASES_SPLIT[new.signature.inputs[0].name](store)
    return Inline(store).must(ProfileOps(engine=new, base=base, target=CPU, split=split, **FEW))  # type: ignore[arg-type]


CASES_SPLIT = {
    CASES[name]().signature().inputs[0].name: (lambda store, name=name: CASES[name]().workload(store).selection)
    for name in ("cnn", "lstm", "torch_encoder")
}


def check(found: OpsProfile) -> None:
    """What holds of every profile."""
    assert sum(operator.share for operator in found.operators) == pytest.approx(1)
    assert all(operator.layers and set(operator.layers) <= set(found.layers) for operator in found.operators)
    assert {layer for operator in found.operators for layer in operator.layers} == set(found.layers)
    assert all(min(operator.us) >= 0 and len(operator.us) == 2 for operator in found.operators)
    assert found.operators_us + found.unattributed.known() <= found.whole.known() * 1.001
    assert found.conversions_us <= found.operators_us


def own(found: OpsProfile, layer: str) -> list[str]:
    return [o.operator for o in found.operators if o.layers == (layer,) and o.how == "own"]


def precisions(found: OpsProfile) -> set[str]:
    return {o.precision for o in found.operators if o.how == "own"}


CNN = ("features.0.0", "features.1.0", "features.2.0", "head")


@pytest.mark.parametrize("technique", ["quantize_ort", "quantize_inc"])
def test_a_convolutional_network_before_and_after_int8_layer_by_layer(store: Store, technique: str) -> None:
    found = profiled(store, engine(store, "cnn", technique), engine(store, "cnn"))
    assert found.base is not None
    check(found.base)
    check(found.engine)
    assert found.base.layers == found.engine.layers == CNN
    assert own(found.base, "features.1.0") == ["Conv"]
    assert own(found.engine, "features.1.0") == ["QLinearConv"]
    assert precisions(found.base) == {"fp32"}
    assert found.base.quantized == ()
    assert set(CNN[:3]) <= set(found.engine.quantized)
    assert any(o.operator == "QuantizeLinear" and o.how == "converts" for o in found.engine.operators)
    assert {change.layer for change in changes(found.base, found.engine)} == set(CNN)


@pytest.mark.parametrize("technique", ["", "quantize_dynamic", "quantize_inc"])
def test_a_recurrent_layer_has_its_name_though_its_weights_have_lost_theirs(store: Store, technique: str) -> None:
    found = profiled(store, engine(store, "lstm", technique)).engine
    check(found)
    assert found.layers == ("rnn", "head")
    assert own(found, "rnn") == ["DynamicQuantizeLSTM" if technique else "LSTM"] * 2
    assert found.quantized[:1] == (("rnn",) if technique else ())


def test_a_text_encoder_whose_biases_are_all_alike_keeps_its_layers_apart(store: Store) -> None:
    found = profiled(store, engine(store, "torch_encoder")).engine
    check(found)
    for layer in ("encoder.layers.0.linear1", "encoder.layers.1.linear1"):
        assert "MatMul" in own(found, layer)
        assert "BiasGelu" in own(found, layer)


def test_a_layer_that_the_strategy_left_in_float_says_so(store: Store) -> None:
    found = profiled(store, engine(store, "lstm", "quantize_inc")).engine
    assert [text.partition(" ")[0] for text in stayed_float(found)] == ["head"]
    assert "the strategy left it" in stayed_float(found)[0]


@pytest.mark.skipif(not machine.installed("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize(("case", "technique", "layers"), [
    ("cnn", "", CNN), ("cnn", "quantize_ort", CNN), ("lstm", "", ("rnn", "head")),
])  # fmt: skip
def test_openvino_tells_the_same_layers(store: Store, case: str, technique: str, layers: Sequence[str]) -> None:
    found = profiled(store, engine(store, case, technique, "openvino")).engine
    assert found.runtime == "openvino"
    assert found.layers == tuple(layers)
    assert {layer for o in found.operators for layer in o.layers} == set(layers)
    assert sum(o.share for o in found.operators) == pytest.approx(1)
    if case == "cnn":
        assert own(found, "features.1.0") == ["Convolution"]
        assert ("int8" in precisions(found)) == bool(technique)


def test_a_backend_without_a_profiler_is_refused_and_those_with_one_are_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(store, "cnn")
    monkeypatch.delattr(registry.find("backend", "onnxruntime"), "profile")
    split = CASES["cnn"]().workload(store).selection
    failed = Inline(store)(ProfileOps(engine=made, target=CPU, split=split))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.reason) == ("unsupported", "the backend onnxruntime has no profiler")
    assert "openvino" in failed.hint
    assert "onnxruntime" not in failed.hint
