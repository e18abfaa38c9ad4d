"""Each ONNX operator against ONNX Runtime, at one and three rows, and through torch.export with a dynamic batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import BATCH, Signature, TensorSpec
from petra_deploy.worker.model.lift import check, lift
from petra_deploy.worker.workload.onnx_file import output_specs

Constants = dict[str, np.ndarray]
NUMBERS = np.random.default_rng(0)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def graph(
    folder: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[int], constants: Constants, opset: int = 20,
    whole: bool = False,
) -> tuple[Path, Signature, Samples]:  # fmt: skip
    """A file with one input x of (batch, *shape) and one output y, its signature and rows for it."""
    kind = INT if whole else FLOAT
    x = helper.make_tensor_value_info("x", kind, [BATCH, *shape])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", [x], [y], weights)
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    )
    if not model.graph.output[0].type.tensor_type.HasField("shape"):  # not inferred: then as many dimensions as x
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [None] * (1 + len(shape))))
    onnx.checker.check_model(model)
    path = folder / "model.onnx"
    onnx.save(model, path)
    rows = NUMBERS.integers(0, 3, (8, *shape)) if whole else NUMBERS.normal(size=(8, *shape)).astype(np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="int64" if whole else "float32", shape=(BATCH, *shape)),),
        outputs=output_specs(path),
    )
    return path, signature, Samples({"x": rows}, None)


def node(operator: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(" ") if inputs else [], outputs.split(), **attributes)


def f(*shape: int) -> np.ndarray:
    return NUMBERS.normal(size=shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def alone(operator: str, shape: Sequence[int] = (4, 6), opset: int = 20, **attributes: Any) -> Any:
    return [node(operator, **attributes)], shape, {}, opset


def having(operator: str, shape: Sequence[int], constants: Constants, opset: int = 20, **attributes: Any) -> Any:
    return [node(operator, " ".join(("x", *constants)), **attributes)], shape, constants, opset


IMAGE, SERIES = (4, 8, 8), (4, 12)
ONE = np.float32(0.7)
CASES: dict[str, Any] = {
    **{name: alone(name) for name in (
        "Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "Exp", "Floor", "Ceil", "Sign", "Sin", "Cos", "Atan",
        "Softplus", "Softsign", "Mish", "Gelu", "Elu", "Celu", "LeakyRelu", "Selu", "HardSigmoid", "HardSwish",
        "ThresholdedRelu",
        "Identity", "Flatten", "Softmax", "LogSoftmax", "Round", "Dropout",
    )},
    "Gelu tanh": alone("Gelu", approximate="tanh"),
    "Softmax of opset 11 flattens": alone("Softmax", (2, 3, 4), 11, axis=1),
    "Flatten 2": ([node("Flatten", axis=2), ], (4, 6, 2), {}, 20),
    **{name: having(name, (4, 6), {"b": f(6)}) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "PRelu")},
    "one minus x": ([node("Sub", "b x")], (4,), {"b": ONE}, 20),
    "number over x": ([node("Exp", "x", "e"), node("Div", "b e")], (4,), {"b": ONE}, 20),
    "Pow": having("Pow", (4, 6), {"b": np.float32(2)}),
    "Mod": ([node("Mod", "x b", fmod=1)], (4,), {"b": ONE}, 20),
    "Clip": having("Clip", (4,), {"low": np.float32(-0.5), "high": np.float32(0.5)}),
    "Clip of opset 6": alone("Clip", (4,), 9, min=-0.5, max=0.5),
    "Clip above": ([node("Clip", "x  high")], (4,), {"high": ONE}, 20),
    "Cast": ([node("Cast", "x", "w", to=INT), node("Cast", "w", to=FLOAT)], (4,), {}, 20),
    "Where": ([node("Greater", "x b", "c"), node("Where", "c x b")], (4, 3), {"b": f(3)}, 20),
    "logic": ([node("Less", "x b", "c"), node("Greater", "x b", "d"), node("Or", "c d", "e"), node("Not", "e", "n"),
               node("And", "n c", "a"), node("Equal", "x x", "s"), node("Xor", "a s", "z"),
               node("Cast", "z", to=FLOAT)], (4,), {"b": f(4)}, 20),
    "Sum and Mean": ([node("Sum", "x x b", "s"), node("Mean", "s x")], (4,), {"b": f(4)}, 20),
    "IsNaN": ([node("Sqrt", "x", "r"), node("IsNaN", "r", "n"), node("Where", "n x r")], (4,), {}, 20),
    **{f"{name} {keep}": having(name, (4, 6), {"axes": i(2)}, keepdims=keep) for keep in (0, 1) for name in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSumExp")},
    "ReduceMean of opset 13": alone("ReduceMean", (4, 6), 13, axes=[1, 2], keepdims=0),
    "ArgMax": ([node("ArgMax", "x", "a", axis=2), node("Cast", "a", to=FLOAT)], (4, 6), {}, 20),
    "TopK": ([node("TopK", "x k", "y places", axis=1)], (6,), {"k": i(3)}, 20),
    "CumSum": having("CumSum", (6,), {"axis": i(1)[0]}, exclusive=1, reverse=1),
    "Einsum": ([node("Einsum", "x w", equation="bij,jk->bik")], (4, 6), {"w": f(6, 2)}, 20),
    "LpNormalization": alone("LpNormalization", (4, 6), axis=-1, p=2),
    "MatMul of inputs": ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t")], (4, 6), {}, 20),
    "MatMul on the left": ([node("MatMul", "w x")], (4, 6), {"w": f(3, 4)}, 20),
    "linear with a bias": ([node("MatMul", "x w", "m"), node("Add", "b m")], (4, 6), {"w": f(6, 5), "b": f(5)}, 20),
    "linear used twice": ([node("MatMul", "x w", "m"), node("Add", "m b", "h"), node("MatMul", "h w", "n"),
                           node("Add", "n b")], (6,), {"w": f(6, 6), "b": f(6)}, 20),
    "Gemm": ([node("Gemm", "x w b", alpha=0.5, beta=2.0)], (6,), {"w": f(6, 5), "b": f(1, 5)}, 20),
    "Gemm transB": ([node("Gemm", "x w", transB=1)], (6,), {"w": f(5, 6)}, 20),
    "Conv": ([node("Conv", "x w b", pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, {"w": f(6, 4, 3, 3), "b": f(6)}, 20),
    "Conv of groups": ([node("Conv", "x w", group=4, dilations=[2, 1])], IMAGE, {"w": f(8, 1, 3, 3)}, 20),
    "Conv uneven": ([node("Conv", "x w", pads=[0, 0, 1, 1])], IMAGE, {"w": f(6, 4, 2, 2)}, 20),
    "Conv same": ([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, {"w": f(6, 4, 3, 3)}, 20),
    "Conv 1d": ([node("Conv", "x w", auto_pad="VALID")], SERIES, {"w": f(6, 4, 3)}, 20),
    "Conv 3d": ([node("Conv", "x w")], (2, 4, 4, 4), {"w": f(3, 2, 3, 3, 3)}, 20),
    "ConvTranspose": ([node("ConvTranspose", "x w", strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1])], IMAGE,
                      {"w": f(4, 6, 3, 3)}, 20),
    "BatchNormalization": having("BatchNormalization", IMAGE, {"s": f(4), "b": f(4), "m": f(4), "v": f(4) ** 2}),
    "InstanceNormalization": having("InstanceNormalization", IMAGE, {"s": f(4), "b": f(4)}),
    "LayerNormalization": having("LayerNormalization", (4, 6), {"s": f(6), "b": f(6)}, axis=-1),
    "LayerNormalization of two": having("LayerNormalization", (4, 6), {"s": f(4, 6), "b": f(4, 6)}, axis=1),
    "GroupNormalization": having("GroupNormalization", IMAGE, {"s": f(4), "b": f(4)}, 21, num_groups=2),
    "MaxPool": alone("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool uneven": alone("MaxPool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "MaxPool 1d": alone("MaxPool", SERIES, kernel_shape=[3], ceil_mode=1, strides=[2]),
    "AveragePool": alone("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool uneven": alone("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "AveragePool counting": alone("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "LpPool": alone("LpPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    "GlobalAveragePool": alone("GlobalAveragePool", IMAGE), "GlobalMaxPool": alone("GlobalMaxPool", IMAGE),
    "Resize nearest": ([node("Resize", "x  scales", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
                       IMAGE, {"scales": np.array([1, 1, 2, 2], np.float32)}, 20),
    "Resize linear": ([node("Resize", "x  scales", mode="linear", coordinate_transformation_mode="half_pixel")], IMAGE,
                      {"scales": np.array([1, 1, 2, 1.5], np.float32)}, 20),
    "Resize corners": ([node("Resize", "x   sizes", mode="linear", axes=[2, 3],
                             coordinate_transformation_mode="align_corners")], IMAGE, {"sizes": i(5, 12)}, 20),
    "Reshape": having("Reshape", (4, 6), {"target": i(0, -1, 3)}),
    "Transpose": alone("Transpose", (4, 6), perm=[0, 2, 1]),
    "Squeeze": having("Squeeze", (1, 6), {"axes": i(1)}), "Unsqueeze": having("Unsqueeze", (6,), {"axes": i(-1, 1)}),
    "Squeeze of opset 11": alone("Squeeze", (1, 6), 11, axes=[1]),
    "Concat": ([node("Concat", "x x", axis=1)], (4,), {}, 20),
    "Split": ([node("Split", "x", "a y", axis=1, num_outputs=2)], (6,), {}, 20),
    "Split uneven": ([node("Split", "x sizes", "a y", axis=2)], (4, 6), {"sizes": i(2, 4)}, 20),
    "Slice": having("Slice", (6, 6), {"starts": i(1, -1), "ends": i(2**62, -(2**62)), "axes": i(1, 2),
                                      "steps": i(2, -1)}),
    "Slice of opset 9": alone("Slice", (6,), 9, starts=[1], ends=[-1], axes=[1]),
    "Gather": having("Gather", (4, 6), {"index": i(0, -1, 2)}, axis=1),
    "Gather one": having("Gather", (4, 6), {"index": i(-1)[0]}, axis=1),
    "GatherElements": ([node("ArgMax", "x", "a", axis=1), node("GatherElements", "x a", axis=1)], (4, 6), {}, 20),
    "Expand": ([node("Unsqueeze", "x axes", "u"), node("Expand", "u target")], (6,),
               {"axes": i(1), "target": i(1, 3, 1)}, 20),
    "Tile": having("Tile", (4,), {"repeats": i(1, 2)}),
    "Pad": having("Pad", (4, 6), {"pads": i(0, 1, 2, 0, 0, 1), "value": np.float32(2)}),
    "Pad edge": having("Pad", IMAGE, {"pads": i(0, 0, 1, 2, 0, 0, 0, 1)}, mode="edge"),
    "Pad reflect": having("Pad", SERIES, {"pads": i(0, 0, 2, 0, 0, 3)}, mode="reflect"),
    "DepthToSpace": alone("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    "DepthToSpace DCR": alone("DepthToSpace", IMAGE, blocksize=2),
    "SpaceToDepth": alone("SpaceToDepth", IMAGE, blocksize=2),
    "Trilu": alone("Trilu", (4, 4), upper=0),
    "OneHot": ([node("ArgMax", "x", "a", axis=1, keepdims=0), node("OneHot", "a depth values")], (5,),
               {"depth": i(5)[0], "values": np.array([0, 1], np.float32)}, 20),
    "sizes": ([node("Shape", "x", "s"), node("Gather", "s zero", "b"), node("Unsqueeze", "b axes", "u"),
               node("Concat", "u rest", "target", axis=0), node("Reshape", "x target", "r"), node("Size", "r", "n"),
               node("Cast", "n", "w", to=FLOAT), node("Div", "r w")], (4, 6),
              {"zero": i(0)[0], "axes": i(0), "rest": i(24)}, 20),
    "Range": ([node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Range", "zero n one", "r"),
               node("Cast", "r", "c", to=FLOAT), node("Add", "x c")], (6,), {"zero": i(0)[0], "one": i(1)[0]}, 20),
    "ConstantOfShape": ([node("Shape", "x", "s"), node("ConstantOfShape", "s", "c", value=helper.make_tensor(
        "v", FLOAT, [1], [2.0])), node("Add", "x c")], (4,), {}, 20),
    "Constant": ([node("Constant", "", "c", value_floats=[1.0, 2.0, 3.0, 4.0]), node("Mul", "x c")], (4,), {}, 20),
    "RMSNormalization": having("RMSNormalization", (4, 6), {"s": f(6)}, 23),
    "Attention": ([node("Attention", "x x x", q_num_heads=2, kv_num_heads=2, is_causal=1)], (4, 6), {}, 23),
}  # fmt: skip
RESET = {"GRU": {"linear_before_reset": 1}}
CASES |= {
    f"{kind} {way}": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]),
         node(kind, "t w r b", "h", hidden_size=5, direction=way, **RESET.get(kind, {})),
         node("Transpose", "h", perm=[2, 0, 1, 3])], (6, 3),
        {"w": f(ways, gates * 5, 3), "r": f(ways, gates * 5, 5), "b": f(ways, 2 * gates * 5)}, 20)
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    for way, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_operator_answers_as_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    nodes, shape, constants, opset = CASES[name]
    path, signature, rows = graph(tmp_path, nodes, shape, constants, opset)
    check(lift(path, signature, rows), path, signature, rows)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path, signature, rows = graph(tmp_path, [node("Det", "x", "d"), node("Relu", "d")], (3, 3), {})
    with pytest.raises(Problem, match="operator Det cannot be lifted"):
        lift(path, signature, rows)


def test_control_flow_is_refused_in_words(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Relu", "x", "z")], "b", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    path, signature, rows = graph(tmp_path, nodes, (3,), {"c": np.array(True)})
    with pytest.raises(Problem, match=r"control flow \(If\) is no sequence of layers"):
        lift(path, signature, rows)


@pytest.mark.parametrize(("nodes", "constants", "said"), [
    ([node("GRU", "x w r", "h", hidden_size=2), node("Flatten", "h")], {"w": f(1, 6, 3), "r": f(1, 6, 2)},
     "linear_before"),
    ([node("ArgMax", "x", "a", axis=1, keepdims=0), node("ReduceMax", "a", "m", keepdims=0),
      node("Range", "o m s", "r"), node("Cast", "r", to=FLOAT)], {"o": i(0)[0], "s": i(1)[0]},
     "computed from the values of a tensor"),
    ([node("MaxPool", "x", "y places", kernel_shape=[2])], {}, "indices of the maxima"),
    ([node("Relu", "x", "unused"), node("Identity", "c")], {"c": f(2, 4, 3)}, "is a constant"),
])  # fmt: skip
def test_what_a_layer_cannot_do_is_refused_with_the_operator(
    nodes: Any, constants: Any, said: str, tmp_path: Path
) -> None:
    path, signature, rows = graph(tmp_path, nodes, (4, 3), constants)
    with pytest.raises(Problem, match=said) as refused:
        lift(path, signature, rows)
    assert refused.value.kind == "unsupported"


def test_indices_look_up_an_embedding_and_a_size_is_no_tensor(tmp_path: Path) -> None:
    nodes = [node("Gather", "table x", "e"), node("ReduceMean", "e axes", keepdims=0)]
    path, signature, rows = graph(tmp_path, nodes, (7,), {"table": f(5, 6), "axes": i(1)}, whole=True)
    module = lift(path, signature, rows)
    check(module, path, signature, rows)
    assert [type(part).__name__ for part in module.inner.children()] == ["Embedding"]
