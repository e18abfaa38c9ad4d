"""FP16 by casts in the graph: what is converted, what stays, and that ONNX Runtime runs it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from petra_deploy.core.machine import resolve
from petra_deploy.core.plan import Layout
from petra_deploy.core.workload import Signature
from petra_deploy.worker.techniques import half, quantize_ort
from tests.models import CASES
from tests.unit.worker.techniques.graphs import exported, follows, inside


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "hand_encoder", "gru_mean", "two_inputs"])
def test_weights_are_fp16_doors_keep_their_types_and_answers_stay_close(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    source = exported(case, tmp_path)
    applied = half.apply(source, half.Options(), case.tools(tmp_path))
    model = onnx.load(applied.model)
    onnx.checker.check_model(model)
    assert not [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    before, after = (onnxruntime.InferenceSession(str(p)) for p in (source, applied.model))
    assert [(v.name, v.type) for v in after.get_inputs()] == [(v.name, v.type) for v in before.get_inputs()]
    assert [(v.name, v.type) for v in after.get_outputs()] == [(v.name, v.type) for v in before.get_outputs()]
    assert applied.facts["fp32_nodes"] == []
    follows(case, applied.model)


def test_around_int8_layers_with_a_bias_all_stays_in_fp32_and_is_symmetric(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    options = quantize_ort.Options(symmetric=True, reduce_range=True)  # this processor may saturate
    quantized = quantize_ort.apply(exported(case, tmp_path), options, case.tools(inside(tmp_path, "q"), rows=32))
    applied = half.apply(quantized.model, half.Options(), case.tools(inside(tmp_path, "h")))
    model = onnx.load(applied.model)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 20
    for node in pairs:
        assert len(node.input) < 3 or (held[node.input[2]].dtype == np.int8 and not held[node.input[2]].any())
    made = {name: node for node in model.graph.node for name in node.output}
    sources = [made[name] for node in model.graph.node if node.op_type == "Conv" for name in node.input[:2]]
    scales = [held[source.input[1]].dtype for source in sources if source.op_type == "DequantizeLinear"]
    assert len(scales) > 20
    assert set(scales) == {np.dtype(np.float32)}
    follows(case, applied.model)


def test_around_int8_layers_without_a_bias_the_scales_are_fp16(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    options = quantize_ort.Options(symmetric=True, reduce_range=True)
    quantized = quantize_ort.apply(exported(case, tmp_path), options, case.tools(inside(tmp_path, "q"), rows=32))
    applied = half.apply(quantized.model, half.Options(), case.tools(inside(tmp_path, "h")))
    model = onnx.load(applied.model)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = [held[node.input[1]].dtype for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert scales.count(np.dtype(np.float16)) > 10
    assert scales.count(np.dtype(np.float32)) == 2  # before the last layer, which has a bias
    follows(case, applied.model)


@pytest.mark.parametrize(("opset", "kind"), [(18, np.float32), (20, np.float16)])
def test_before_opset_19_scales_stay_in_fp32(opset: int, kind: type, tmp_path: Path) -> None:
    path, weights = tmp_path / "int8.onnx", np.random.default_rng(0).integers(-127, 127, (64, 4), np.int8)
    constants = {"w": weights, "scale": np.float32(0.02), "zero": np.int8(0)}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["v"]),
        onnx.helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    doors = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 64), ("y", 4))
    ]
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", doors[:1], doors[1:], held)
    imports = [onnx.helper.make_opsetid("", opset)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    applied = half.apply(path, half.Options(), CASES["mlp"]().tools(tmp_path))
    model = onnx.load(applied.model)
    kinds = {t.name: onnx.numpy_helper.to_array(t).dtype for t in model.graph.initializer}
    assert {kinds[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear"} == {np.dtype(kind)}
    rows = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    written = onnxruntime.SessionOptions()  # as written: fused int8 kernels may saturate
    written.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    before, after = (
        onnxruntime.InferenceSession(str(p), written).run(None, {"x": rows})[0] for p in (path, applied.model)
    )
    assert np.allclose(before, after, rtol=0.01, atol=0.1)


def test_what_would_overflow_stays_in_fp32(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    source = exported(case, tmp_path)
    model = onnx.load(source)
    large = next(t for t in model.graph.initializer if len(t.dims) > 1)
    large.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(large) * np.float32(1e6), large.name))
    onnx.save(model, source)
    applied = half.apply(source, half.Options(), case.tools(tmp_path))
    assert applied.facts["fp32_nodes"]
    held = {t.name: t.data_type for t in onnx.load(applied.model).graph.initializer}
    first = next(node for node in onnx.load(applied.model).graph.node if node.name == applied.facts["fp32_nodes"][0])  # type: ignore[index]
    assert held[first.input[1]] == TensorProto.FLOAT


def test_it_is_for_gpus_that_have_fp16() -> None:
    nothing = Signature(inputs=(), outputs=())
    layout = Layout(form="module", signature=nothing, parameters=1, bytes=4, operators={"Conv2d": 1})
    assert half.obstacles(layout, resolve("t4")) == ()
    assert "FP16 is for GPUs" in half.obstacles(layout, resolve("cpu"))[0]
    assert half.obstacles(layout, replace(resolve("t4"), precisions=("fp32",))) == ("t4 has no fp16",)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_bf16_has_its_own_rounding_and_range(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has no BF16 kernels for processors, so ONNX's own reference evaluates it."""
    case = CASES[name]()
    source = exported(case, tmp_path)
    model = onnx.load(half.apply(source, half.Options(dtype="bf16"), case.tools(inside(tmp_path, "b"))).model)
    onnx.checker.check_model(model, full_check=True)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    brains = [t for t in model.graph.initializer if t.data_type == TensorProto.BFLOAT16]
    assert brains
    assert not [t for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    for tensor in brains:
        values = onnx.numpy_helper.to_array(tensor)
        assert np.array_equal(values, before[tensor.name].astype(values.dtype))  # rounded once, from FP32
    feeds = dict(case.samples(4).inputs)
    (wanted,) = onnxruntime.InferenceSession(str(source)).run(None, feeds)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()
