"""The two quantizers of onnxruntime.quantization: real int8 operators, or a reason."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.artifact import graph
from petra_deploy.worker.techniques import quantize_dynamic, quantize_ort
from tests.models import CASES, Case
from tests.unit.worker.techniques.graphs import exported, follows, inside

RTX = Target(name="rtx", runtime="tensorrt", device="cuda", precisions=("fp16", "int8"))


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_static_quantization_covers_convolutions_and_follows_the_float_model(method: str, tmp_path: Path) -> None:
    case = CASES["cnn"]()
    source = exported(case, tmp_path)
    options = quantize_ort.Options(method=method, reduce_range=True)  # type: ignore[arg-type]
    applied = quantize_ort.apply(source, options, case.tools(tmp_path, rows=40))
    assert applied.facts["int8"]["Conv"] == 3  # type: ignore[index]
    _follows(case, applied.model)


def test_residual_additions_are_quantized_around_convolutions_but_not_in_a_transformer(tmp_path: Path) -> None:
    counts = {}
    for name in ("resnet", "hand_encoder"):
        case = CASES[name]()
        applied = quantize_ort.apply(
            exported(case, tmp_path), quantize_ort.Options(), case.tools(inside(tmp_path, name))
        )
        counts[name] = applied.facts["int8"]
    assert counts["resnet"]["Add"] == 8  # type: ignore[index]
    assert "Add" not in counts["hand_encoder"]  # type: ignore[operator]


def test_reduced_range_keeps_weights_within_seven_bits(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    applied = quantize_ort.apply(
        exported(case, tmp_path), quantize_ort.Options(reduce_range=True), case.tools(tmp_path)
    )
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(applied.model).graph.initializer]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim > 1) <= 64


@pytest.mark.parametrize(("name", "operator"), [("lstm", "DynamicQuantizeLSTM"), ("torch_encoder", "MatMulInteger")])
def test_dynamic_quantization_covers_lstm_and_linear_layers(name: str, operator: str, tmp_path: Path) -> None:
    case = CASES[name]()
    applied = quantize_dynamic.apply(
        exported(case, tmp_path), quantize_dynamic.Options(reduce_range=True), case.tools(tmp_path)
    )
    assert operator in applied.facts["int8"]  # type: ignore[operator]
    _follows(case, applied.model)


def test_a_graph_without_anything_to_quantize_is_refused(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
        ),
        tmp_path / "relu.onnx",
    )
    case = CASES["mlp"]()
    with pytest.raises(Problem, match="no operator of the graph became int8"):
        quantize_dynamic.apply(tmp_path / "relu.onnx", quantize_dynamic.Options(), case.tools(tmp_path))


def test_the_source_file_is_untouched(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    source = exported(case, tmp_path)
    before = source.read_bytes()
    quantize_ort.apply(source, quantize_ort.Options(), case.tools(inside(tmp_path, "scratch")))
    assert source.read_bytes() == before


def test_what_does_not_apply_is_said_before() -> None:
    layout = CASES["mlp"]().layout()
    assert quantize_ort.obstacles(layout, RTX) == ()
    assert "CPU only" in quantize_dynamic.obstacles(layout, RTX)[0]


def _follows(case: Case, path: Path) -> None:
    follows(case, path)
    assert graph.quantized(ir.load(path))
