"""FP8 (E4M3) pairs: scales by the largest magnitude, the rest FP16, and ONNX Runtime computes what is written."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from petra_deploy.core.errors import Problem
from petra_deploy.core.machine import resolve
from petra_deploy.worker.artifact import work
from petra_deploy.worker.model import parity
from petra_deploy.worker.techniques import half, quantize_fp8
from tests.models import CASES, Case
from tests.unit.worker.techniques.graphs import exported, inside

CLOSER = replace(parity.CLOSE, cosine=0.998)


def quantized(case: Case, folder: Path) -> Path:
    tools = case.tools(inside(folder, "q"), rows=48)
    return Path(quantize_fp8.apply(exported(case, folder), quantize_fp8.Options(), tools).model)


def follows(case: Case, path: Path) -> None:
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(case.adapter(), case.signature(), batches)
    parity.compare(expected, parity.run_file(path, batches), case.signature(), CLOSER)


@pytest.mark.parametrize(("name", "layers"), [("mlp", 2), ("resnet", 19), ("mobilenet", 11), ("hand_encoder", 8)])
def test_wide_layers_are_fp8_the_rest_fp16_and_answers_stay_close(name: str, layers: int, tmp_path: Path) -> None:
    case = CASES[name]()
    path = quantized(case, tmp_path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    follows(case, path)
    halved = Path(half.apply(path, half.Options(), case.tools(inside(tmp_path, "h"))).model)
    follows(case, halved)
    model = onnx.load(halved)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert kinds <= {TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT64}
    feeds = parity.probes(case.samples(8), case.signature())[0]
    counted = [each.precision for each in work.count(halved, feeds) if each.macs]
    assert counted.count("fp8") == layers
    assert set(counted) == {"fp8", "fp16"}


def test_weights_are_rounded_once_from_fp32_by_channel(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    source = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exported(case, tmp_path)).graph.initializer}
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(quantized(case, tmp_path)).graph.initializer}
    wide, narrow = source["inner.0.weight"], held["inner.0.weight_quantized_fp8"]
    scale = held["inner.0.weight_scale_fp8"]
    assert np.allclose(scale, np.abs(wide).max(1) / 448)
    assert np.array_equal(narrow, (wide / scale[:, None]).astype(ml_dtypes.float8_e4m3fn))
    assert np.abs(narrow.astype(np.float32)).max(1) == pytest.approx(np.full(len(scale), 448.0))


def test_a_channel_of_zeros_and_one_of_tiny_weights_have_scales_that_fp16_holds(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    source = exported(case, tmp_path)
    model = onnx.load(source)
    weight = next(t for t in model.graph.initializer if t.name == "inner.0.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0], values[1] = 0.0, 1e-7
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, source)
    tools = case.tools(inside(tmp_path, "q"))
    path = quantize_fp8.apply(source, quantize_fp8.Options(), tools).model
    halved = half.apply(path, half.Options(), case.tools(inside(tmp_path, "h"))).model
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(halved).graph.initializer}
    assert held["inner.0.weight_scale_fp8"].dtype == np.float16
    assert held["inner.0.weight_scale_fp8"].min() == np.float16(2**-14)
    for outputs in parity.run_file(halved, parity.probes(case.samples(8), case.signature())):
        assert np.isfinite(outputs[0]).all()


def test_narrow_and_depthwise_layers_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no operator of the graph became fp8"):
        quantized(CASES["inception"](), tmp_path)
    graph = onnx.load(quantized(CASES["mobilenet"](), inside(tmp_path, "m"))).graph
    held = {t.name: t for t in graph.initializer}
    depthwise = [
        n for n in graph.node if n.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in n.attribute)
    ]
    assert depthwise
    assert {held[node.input[1]].data_type for node in depthwise} == {TensorProto.FLOAT}


def test_a_graph_of_an_older_opset_is_raised(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    source = exported(case, tmp_path)
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 17), source)
    path = quantize_fp8.apply(source, quantize_fp8.Options(), case.tools(inside(tmp_path, "q"))).model
    assert {o.domain: o.version for o in onnx.load(path).opset_import}[""] >= 19
    follows(case, Path(path))


def test_it_is_for_gpus_that_have_fp8() -> None:
    layout = CASES["mlp"]().layout()
    assert quantize_fp8.obstacles(layout, resolve("l4")) == ()
    assert quantize_fp8.obstacles(layout, resolve("t4")) == ("t4 has no fp8",)
    assert quantize_fp8.obstacles(layout, resolve("cpu"))
    assert quantize_fp8.obstacles(replace(layout, operators={"LSTM": 1}), resolve("l4"))
    assert "recurrent" in quantize_fp8.obstacles(replace(layout, operators={"GRU": 1, "Linear": 1}), resolve("l4"))[0]
