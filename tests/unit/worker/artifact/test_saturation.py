"""ONNX Runtime's own kernels are the judge: their integers are ours, by the arithmetic of this processor."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from petra_deploy.core import cpus, machine
from petra_deploy.worker.artifact import integers, saturation

Array = np.ndarray[Any, np.dtype[Any]]
SATURATES = cpus.kind(machine.instructions()) in cpus.SATURATING  # else VNNI, AMX or Arm: exact sums


def both(node: Any, constants: dict[str, Array], values: dict[str, Array], level: str) -> tuple[Array, Array, Array]:
    """What ONNX Runtime answers here, then ours with sums that saturate and with exact ones."""
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in values.items()
    ]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info("y")], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (layer,) = integers.find(model)
    cut, _ = integers.evaluate(layer, values, saturate=layer.risky)
    exact, count = integers.evaluate(layer, values, saturate=False)
    assert count == 0
    return session.run(None, values)[0], cut, exact


def random(seed: int, shape: tuple[int, ...], dtype: type, low: int | None = None) -> Array:
    limits = np.iinfo(dtype)
    values: Array = np.random.default_rng(seed).integers(limits.min if low is None else low, limits.max + 1, shape)
    return values.astype(dtype)


@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 2, 16), (1, 25, 3), (3, 33, 17), (13, 385, 40), (2, 1000, 5)])
def test_matrix_products_are_the_kernels(rows: int, inner: int, outer: int) -> None:
    a, b = random(0, (rows, inner), np.uint8, low=100), random(1, (inner, outer), np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    here, cut, exact = both(node, {"b": b}, {"a": a}, "ORT_ENABLE_ALL")
    np.testing.assert_array_equal(here, cut if SATURATES else exact)
    assert (exact == a.astype(int) @ b.astype(int)).all()
    assert (cut != exact).any()


@pytest.mark.parametrize(("a_type", "b_type"), [(np.uint8, np.uint8), (np.int8, np.int8)])
def test_kernels_of_one_sign_are_exact_everywhere(a_type: type, b_type: type) -> None:
    a, b = random(0, (4, 64), a_type), random(1, (64, 16), b_type)
    zero = {"az": np.zeros((), a_type), "bz": np.zeros((), b_type)}
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    here, cut, exact = both(node, {"b": b, **zero}, {"a": a}, "ORT_ENABLE_ALL")
    np.testing.assert_array_equal(here, exact)
    np.testing.assert_array_equal(here, cut)


CONVOLUTIONS = {  # channels in, out, groups, kernel, stride, dilation
    "odd channels": (3, 8, 1, (3, 3), 1, 1),
    "symmetric kernels": (16, 32, 1, (3, 3), 2, 1),
    "dilated": (5, 7, 1, (3, 3), 1, 2),
    "pointwise": (8, 16, 1, (1, 1), 1, 1),
    "groups": (8, 16, 2, (3, 3), 1, 1),
    "depthwise": (16, 16, 16, (3, 3), 1, 1),
    "depthwise, twice as many out": (16, 32, 16, (3, 3), 1, 1),
    "one dimension": (6, 6, 1, (5,), 1, 1),
}


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_the_kernels(name: str, level: str) -> None:
    channels, out, groups, kernel, stride, dilation = CONVOLUTIONS[name]
    rank = len(kernel)
    x = random(0, (2, channels, *(9, 9)[:rank]), np.uint8, low=60)
    w = random(1, (out, channels // groups, *kernel), np.int8)
    constants = {
        "xs": np.float32(0.1), "xz": np.uint8(120), "w": w, "ws": np.full(out, 0.05, np.float32),
        "wz": np.zeros(out, np.int8), "ys": np.float32(0.04 * w[0].size ** 0.5), "yz": np.uint8(128),
        "b": random(2, (out,), np.int8).astype(np.int32),
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"],
        group=groups, pads=[1] * 2 * rank, strides=[stride] * rank, dilations=[dilation] * rank,
    )  # fmt: skip
    here, cut, exact = both(node, constants, {"x": x}, level)
    np.testing.assert_array_equal(here, cut if SATURATES else exact)
    assert (cut == exact).all() == (name == "depthwise")  # whose kernels widen first


@pytest.mark.parametrize("operator", ["QGemm", "QLinearMatMul", "MatMulIntegerToFloat"])
def test_linear_layers_are_the_kernels(operator: str) -> None:
    a, b = random(0, (5, 65), np.uint8, low=60), random(1, (65, 24), np.int8)
    constants = {
        "as": np.float32(0.1), "az": np.uint8(120), "b": b, "bs": np.full(24, 0.05, np.float32),
        "bz": np.zeros(24, np.int8), "ys": np.float32(0.3), "yz": np.uint8(128), "c": np.arange(24, dtype=np.int32),
        "f": np.linspace(-1, 1, 24, dtype=np.float32),
    }  # fmt: skip
    inputs = {
        "QGemm": ["a", "as", "az", "b", "bs", "bz", "c", "ys", "yz"],
        "QLinearMatMul": ["a", "as", "az", "b", "bs", "bz", "ys", "yz"],
        "MatMulIntegerToFloat": ["a", "b", "as", "bs", "az", "bz", "f"],
    }[operator]
    domain = "" if operator == "QLinearMatMul" else "com.microsoft"
    constants = {name: value for name, value in constants.items() if name in inputs}
    node = helper.make_node(operator, inputs, ["y"], domain=domain)
    here, cut, exact = both(node, constants, {"a": a}, "ORT_ENABLE_ALL")
    np.testing.assert_array_equal(here, cut if SATURATES else exact)
    assert (cut != exact).any()


def test_the_bound_is_reached_by_two_large_weights_side_by_side_and_by_none_of_seven_bits() -> None:
    weight = np.array([[127, 64, -64], [2, 64, -64], [0, 0, 0], [127, -127, 63]], np.int8)
    assert saturation.may_saturate(weight).tolist() == [[True, False, False], [False, False, False]]
    assert not saturation.may_saturate(weight, top=254).any()
    assert not saturation.may_saturate(np.full((8, 3), -64, np.int8)).any()


def test_sums_are_cut_pair_by_pair() -> None:
    rows, weight = np.full((1, 5), 255, np.uint8), np.full((5, 1), 127, np.int8)
    delta, count = saturation.shortfall(rows, weight)
    assert (int(delta[0, 0]), count) == (2 * (32767 - 2 * 255 * 127), 2)
