"""The tidy-up of graphs: each rewrite on a graph of its own, results unchanged."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.worker.artifact import graph

RNG = np.random.default_rng(0)


def test_a_weight_behind_slices_and_transposes_is_stored_as_it_is_used(tmp_path: Path) -> None:
    weights = {"w": RNG.standard_normal((6, 4)).astype(np.float32), "from": np.array([0]), "to": np.array([5])}
    nodes = [
        helper.make_node("Slice", ["w", "from", "to"], ["cut"]),
        helper.make_node("Transpose", ["cut"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5))
    np.testing.assert_array_equal(before, after)
    assert graph.operators(model) == {"MatMul": 1}


def test_an_int8_weight_behind_a_transpose_stays_int8(tmp_path: Path) -> None:
    weights = _int8("w", (5, 4), axis=0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Transpose", ["wf"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert graph.operators(model) == {"DequantizeLinear": 1, "MatMul": 1}
    stored = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert (4, 5) in [tuple(tensor.shape) for tensor in stored if tensor is not None]


def test_a_linear_layer_on_integers_becomes_one_node_where_onnx_runtime_runs_it(tmp_path: Path) -> None:
    weights = {**_int8("w", (4, 5), axis=1), "bias": RNG.standard_normal(5).astype(np.float32),
               "x_scale": np.float32(0.02), "x_zero": np.uint8(128)}  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)
    assert graph.operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    _, _, portable = _both(tmp_path, nodes, weights, (3, 4), (3, 5), lower=False)
    assert graph.operators(portable) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Add": 1}


def test_rows_of_an_int8_embedding_are_gathered_before_they_are_dequantized(tmp_path: Path) -> None:
    weights = {**_int8("w", (9, 4), axis=None), "ids": np.array([[1, 8], [0, 3]])}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("Gather", ["wf", "ids"], ["rows"]),
        helper.make_node("Add", ["rows", "x"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (2, 2, 4), (2, 2, 4))
    np.testing.assert_array_equal(before, after)
    assert [node.op_type for node in model.graph] == ["Gather", "DequantizeLinear", "Add"]
    assert graph.quantized(model) == {"Gather": 1}


def test_an_embedding_that_is_the_graphs_output_keeps_its_name(tmp_path: Path) -> None:
    weights = {**_int8("w", (9, 4), axis=None), "ids": np.array([[1, 8], [0, 3]])}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("Gather", ["wf", "ids"], ["y"]),
    ]
    before, after, _ = _both(tmp_path, nodes, weights, (1,), (2, 2, 4))
    np.testing.assert_array_equal(before, after)


def test_a_mean_over_all_pixels_becomes_global_pooling_and_one_over_channels_does_not(tmp_path: Path) -> None:
    for axes, expected in (
        ([2, 3], {"Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}),
        ([1], {"Relu": 1, "ReduceMean": 1}),
    ):
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("ReduceMean", ["r", "axes"], ["y"], keepdims=0),
        ]
        out = (2, 3) if axes == [2, 3] else (2, 4, 5)
        before, after, model = _both(tmp_path, nodes, {"axes": np.array(axes)}, (2, 3, 4, 5), out)
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
        assert graph.operators(model) == expected


def test_a_norm_behind_joined_convolutions_goes_into_their_weights(tmp_path: Path) -> None:
    weights = {name: RNG.uniform(0.5, 2.0, 5).astype(np.float32) for name in ("gain", "offset", "mean", "variance")}
    weights |= {
        "w1": RNG.standard_normal((2, 3, 1)),
        "w2": RNG.standard_normal((3, 3, 3)),
        "b2": RNG.standard_normal(3),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"]),
        helper.make_node("Conv", ["x", "w2", "b2"], ["c2"], pads=[1, 1]),
        helper.make_node("Concat", ["c1", "c2"], ["joined"], axis=1),
        helper.make_node("BatchNormalization", ["joined", "gain", "offset", "mean", "variance"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (2, 3, 8), (2, 5, 8))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)
    assert graph.operators(model) == {"Conv": 2, "Concat": 1}


def test_a_norm_stays_where_the_joined_convolutions_are_used_elsewhere_too(tmp_path: Path) -> None:
    weights = {name: RNG.uniform(0.5, 2.0, 2).astype(np.float32) for name in ("gain", "offset", "mean", "variance")}
    weights["w"] = RNG.standard_normal((2, 3, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Concat", ["c"], ["joined"], axis=1),
        helper.make_node("BatchNormalization", ["joined", "gain", "offset", "mean", "variance"], ["normed"]),
        helper.make_node("Add", ["normed", "joined"], ["y"]),
    ]
    before, after, model = _both(tmp_path, nodes, weights, (2, 3, 8), (2, 2, 8))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert graph.operators(model)["BatchNormalization"] == 1


def test_dead_nodes_unused_weights_and_all_metadata_are_left_out(tmp_path: Path) -> None:
    weights = {"w": np.ones(4, np.float32), "unused": np.ones(4000, np.float32)}
    nodes = [
        helper.make_node("Add", ["x", "w"], ["y"], doc_string="/home/someone/model.py"),
        helper.make_node("Mul", ["x", "w"], ["dead"]),
    ]
    nodes[0].metadata_props.add(key="stack", value="/home/someone/secret.py")
    _, _, model = _both(tmp_path, nodes, weights, (3, 4), (3, 4))
    assert graph.operators(model) == {"Add": 1}
    data = (tmp_path / "after.onnx").read_bytes()
    assert b"someone" not in data
    assert len(data) < 1000


def test_tidying_twice_changes_nothing_more(tmp_path: Path) -> None:
    weights = {"w": RNG.standard_normal((5, 4)).astype(np.float32)}
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    _, _, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5))
    assert set(graph.tidy(model).values()) == {0}


def test_quantized_counts_operators_on_integers_only(tmp_path: Path) -> None:
    weights = {**_int8("w", (5, 4), axis=0), "v": RNG.standard_normal((5, 5)).astype(np.float32),
               "x_scale": np.float32(0.02), "x_zero": np.uint8(128)}  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Gemm", ["xf", "wf"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    _, _, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5), lower=False)
    assert graph.quantized(model) == {"Gemm": 1}
    _, _, model = _both(tmp_path, nodes, weights, (3, 4), (3, 5))
    assert graph.quantized(model) == {"MatMulIntegerToFloat": 1}


def _int8(name: str, shape: tuple[int, ...], axis: int | None) -> dict[str, np.ndarray]:
    size = () if axis is None else (shape[axis],)
    return {
        name: RNG.integers(-64, 64, shape).astype(np.int8),
        f"{name}_scale": np.asarray(RNG.uniform(0.01, 0.02, size), np.float32),
        f"{name}_zero": np.zeros(size, np.int8),
    }


def _both(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: tuple[int, ...], y: tuple[int, ...],
    lower: bool = True,
) -> tuple[np.ndarray, np.ndarray, ir.Model]:  # fmt: skip
    """The output on random input before and after tidying, and the tidied model."""
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "before.onnx")
    model = ir.load(folder / "before.onnx")
    graph.tidy(model, lower=lower)
    graph.save(model, folder / "after.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal(x).astype(np.float32)}
    results = []
    for name in ("before", "after"):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        results.append(session.run(["y"], feed)[0])
    return results[0], results[1], model
