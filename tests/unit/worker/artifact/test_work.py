"""Work is counted as by hand: of layers, of integers behind their Q/DQ, of what is joined or free."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.errors import Problem
from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.artifact.work import count, count_nodes


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> Path:
    held = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    last = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "g", given, last, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_a_convolution_its_activation_and_a_linear_layer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": zeros(8, 3, 3, 3), "v": zeros(8 * 36, 10)}, (1, 3, 6, 6))
    conv, relu, gemm = count(path, {"x": zeros(1, 3, 6, 6)})
    assert (conv.op, conv.macs, conv.inner, conv.outer) == ("Conv", 8 * 36 * 27, 27, 8)
    assert conv.weight_bytes == 4 * 8 * 27
    assert conv.activation_bytes == 4 * (3 * 36 + 8 * 36)
    assert (relu.joined, relu.macs, conv.joined) == (True, 0, False)
    assert (gemm.macs, gemm.inner, gemm.outer, gemm.precision) == (8 * 36 * 10, 8 * 36, 10, "fp32")


def test_a_depthwise_convolution_is_told_apart(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=4)]
    (one,) = count(save(tmp_path / "m.onnx", nodes, {"w": zeros(4, 1, 3, 3)}, (1, 4, 5, 5)), {"x": zeros(1, 4, 5, 5)})
    assert (one.op, one.macs) == ("DepthwiseConv", 4 * 9 * 9)


def test_between_q_and_dq_the_integers_are_what_is_read(tmp_path: Path) -> None:
    scale = {"s": np.float32(0.1) * np.ones((), np.float32), "z": zeros(dtype=np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["e"]),
        helper.make_node("MatMul", ["d", "e"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["f"]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": zeros(16, 4, dtype=np.int8), **scale}, (2, 16))
    matmul, relu = count(path, {"x": zeros(2, 16)})
    assert (matmul.precision, matmul.macs) == ("int8", 2 * 16 * 4)
    assert (matmul.weight_bytes, matmul.activation_bytes) == (16 * 4, 2 * 16 + 2 * 4)
    assert (relu.joined, relu.precision) == (True, "int8")


def test_a_graph_that_runs_as_it_stands_is_counted_node_by_node(tmp_path: Path) -> None:
    held = {
        "s": np.float32(0.1) * np.ones((), np.float32), "z": zeros(dtype=np.uint8), "t": np.full(8, 0.1, np.float32),
        "w": zeros(8, 3, 3, 3, dtype=np.int8), "y0": zeros(8, dtype=np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "t", "y0", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, held, (1, 3, 6, 6))
    quantize, conv, back = count_nodes(optimized(path, {"optimization": "none"}), {"x": zeros(1, 3, 6, 6)})
    assert (conv.op, conv.precision, conv.macs, conv.inner, conv.outer, conv.taps) == (
        "QLinearConv", "int8", 8 * 16 * 27, 27, 8, 9,
    )  # fmt: skip
    assert quantize.activation_bytes == 4 * 108 + 108
    assert back.activation_bytes == 8 * 16 * 5


def test_optimizers_that_an_engine_does_without_are_left_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, {"w": zeros(4, 3, 3, 3)}, (1, 3, 6, 6))
    assert [node.op_type for node in optimized(path).graph.node] == ["FusedConv"]
    without = optimized(path, {"disabled_optimizers": ["ConvActivationFusion"]})
    assert [node.op_type for node in without.graph.node] == ["Conv", "Relu"]


def test_a_recurrent_layer_counts_every_step_and_a_table_the_rows_taken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["t"]),
        helper.make_node("LSTM", ["t", "w", "r"], ["y"], hidden_size=5),
    ]
    weights = {"table": zeros(1000, 6), "w": zeros(1, 20, 6), "r": zeros(1, 20, 5)}
    _, gather, lstm = count(save(tmp_path / "m.onnx", nodes, weights, (7, 2)), {"x": zeros(7, 2)})
    assert gather.weight_bytes == 4 * 7 * 2 * 6
    assert (lstm.macs, lstm.steps) == (7 * 2 * 4 * 5 * (6 + 5), 7)


def test_what_does_not_run_is_a_mismatch(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": zeros(3, 3)}, (2, 4))
    with pytest.raises(Problem) as caught:
        count(path, {"x": zeros(2, 4)})
    assert caught.value.kind == "mismatch"
