"""ONNX Runtime's layers on 8-bit integers: which of them may saturate, and what each puts out.

    layers = find(model)                         # of a graph that ONNX Runtime has optimized
    at_risk = [layer for layer in layers if layer.risky]
    output, count = evaluate(layer, values, saturate=True)

Results are those of the kernels, bit for bit, with sums that saturate in 16 bits or exact ones
(`saturation.py`). Sources: the operators' definitions (ONNX; ONNX Runtime's contrib operators) and
the kernels themselves, run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from petra_deploy.worker.artifact import saturation

Array = NDArray[Any]
_INPUTS = {  # operator -> where it takes activations, their zero point, weights, theirs, bias; -1: nowhere
    "QLinearConv": (0, 2, 3, 5, 8),
    "QLinearMatMul": (0, 2, 3, 5, -1),
    "QGemm": (0, 2, 3, 5, 6),
    "MatMulInteger": (0, 2, 1, 3, -1),
    "MatMulIntegerToFloat": (0, 4, 1, 5, 6),
}
_BOUNDED = {  # operators that are bounded but not computed -> their weights, each with its zero point
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
    "DynamicQuantizeMatMul": ((1, 3),),
    "QAttention": ((1, 7),),
    "ConvInteger": ((1, 3),),
}
OPERATORS = frozenset((*_INPUTS, *_BOUNDED))


@dataclass(frozen=True)
class Layer:
    node: onnx.NodeProto
    name: str
    risky: bool  # whether activations exist for which a pair sum leaves 16 bits
    why: str = ""  # it cannot be computed here
    constants: "dict[str, Array] | None" = None  # the initializers among its inputs


def find(model: onnx.ModelProto) -> list[Layer]:
    """The integer layers of the main graph that multiply by weights. Those in subgraphs are not computed."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [_layer(node, constants, "") for node in model.graph.node if _known(node)]
    inner = [graph for node in model.graph.node for graph in _graphs(node)]
    while inner:
        graph = inner.pop()
        constants |= {tensor.name: tensor for tensor in graph.initializer}
        layers += [_layer(node, constants, "it is in a subgraph") for node in graph.node if _known(node)]
        inner += [deeper for node in graph.node for deeper in _graphs(node)]
    return layers


def evaluate(layer: Layer, values: dict[str, Array], *, saturate: bool) -> tuple[Array, int]:
    """What the node puts out for `values` (name -> array), and how many pair sums saturated."""
    node, known = layer.node, {**(layer.constants or {}), **values}

    def at(index: int) -> Array | None:
        name = node.input[index] if 0 <= index < len(node.input) else ""
        return known[name] if name else None

    a, a_zero, b, b_zero, bias = (at(index) for index in _INPUTS[node.op_type])
    if a is None or b is None:
        raise ValueError(f"{layer.name} lacks an input")
    saturate = saturate and a.dtype == np.uint8 and b.dtype == np.int8
    zero = 0 if a_zero is None else int(a_zero.reshape(-1)[0])
    if node.op_type == "QLinearConv":
        sums, count = _convolved(node, a, zero, b, b_zero, saturate)
        channels = (-1, *[1] * (a.ndim - 2))
    else:
        sums, count = _multiplied(a, zero, b.T if _attribute(node, "transB", 0) else b, b_zero, saturate)
        channels = (-1,)
    if node.op_type == "MatMulInteger":
        return sums.astype(np.int32), count
    if node.op_type == "MatMulIntegerToFloat":
        scaled = sums.astype(np.float32) * (at(2) * at(3))  # type: ignore[operator]
        return scaled if bias is None else scaled + bias, count
    if bias is not None:
        sums = sums + bias.astype(np.int64).reshape(bias.shape if node.op_type == "QGemm" else channels)
    scale = (at(1) * at(4)).reshape(channels)  # type: ignore[operator]
    to_scale, to_zero = (at(index) for index in ((7, 8) if node.op_type == "QGemm" else (6, 7)))
    if to_scale is None:
        return sums.astype(np.float32) * scale, count
    kind = np.uint8 if to_zero is None else to_zero.dtype
    shift, limits = 0 if to_zero is None else int(to_zero.reshape(-1)[0]), np.iinfo(kind)
    scaled = sums.astype(np.float32) * (scale / to_scale).astype(np.float32)
    return (np.rint(np.clip(scaled, limits.min - shift, limits.max - shift)) + shift).astype(kind), count


def _known(node: onnx.NodeProto) -> bool:
    return node.op_type in OPERATORS


def _layer(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], why: str) -> Layer:
    constants = {name: numpy_helper.to_array(tensors[name]) for name in node.input if name in tensors}
    name = node.name or node.output[0]

    def constant(index: int) -> Array | None:
        return constants.get(node.input[index]) if 0 <= index < len(node.input) else None

    if node.op_type in _BOUNDED:
        pairs = [(constant(w), constant(z)) for w, z in _BOUNDED[node.op_type]]
        risky = any(_risky(node, weight, zero) for weight, zero in pairs)
        return Layer(node, name, risky, why or f"{node.op_type} is not computed here", constants)
    _, a_zero, b, b_zero, _ = _INPUTS[node.op_type]
    zero = constant(a_zero)
    signed = zero is not None and zero.dtype == np.int8  # S8S8 kernels are exact
    weight = constant(b)
    risky = not signed and _risky(node, weight, constant(b_zero))
    if not why and (weight is not None and node.op_type != "QLinearConv" and weight.ndim != 2):
        why = f"its weights have {weight.ndim} dimensions"
    if _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1.0:
        why = why or "it is transposed or scaled"
    if _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or _attribute(node, "channels_last", 0):
        why = why or "its padding or layout is not written out"
    return Layer(node, name, risky, why, constants)


def _risky(node: onnx.NodeProto, weight: Array | None, zero: Array | None) -> bool:
    """Whether some uint8 activations saturate; of weights made in the graph, unless they are uint8."""
    if weight is None:
        return zero is None or zero.dtype == np.int8
    if weight.dtype != np.int8:
        return False  # U8U8 kernels widen first
    if node.op_type in ("QLinearConv", "ConvInteger"):
        groups = _attribute(node, "group", 1)
        if groups == len(weight) and weight.shape[1] == 1 and weight.ndim <= 4:
            return False  # the kernels of depthwise convolutions widen first
        return any(saturation.may_saturate(part).any() for part in saturation.conv_weight(weight, groups))
    matrices = weight.reshape(-1, *weight.shape[-2:]) if weight.ndim >= 2 else weight.reshape(1, -1, 1)
    return any(bool(saturation.may_saturate(m.T if _attribute(node, "transB", 0) else m).any()) for m in matrices)


def _multiplied(a: Array, zero: int, b: Array, b_zero: Array | None, saturate: bool) -> tuple[Array, int]:
    """(..., k) x (k, m) less the zero points, int64; and how many pair sums saturated."""
    rows = a.reshape(-1, a.shape[-1])
    other = np.zeros(1, np.int64) if b_zero is None else b_zero.reshape(-1).astype(np.int64)
    exact = (rows.astype(np.float64) - zero) @ (b.astype(np.float64) - other)
    sums, count = exact.astype(np.int64), 0
    if saturate:
        delta, count = saturation.shortfall(rows, b)
        sums += delta
    return sums.reshape(*a.shape[:-1], b.shape[1]), count


def _convolved(
    node: onnx.NodeProto, a: Array, zero: int, b: Array, b_zero: Array | None, saturate: bool
) -> tuple[Array, int]:
    """The same of a convolution: (n, m, *places)."""
    rank, groups = a.ndim - 2, _attribute(node, "group", 1)
    saturate = saturate and not (groups == len(b) == a.shape[1] and rank <= 2)
    ones = [1] * rank
    strides, dilations = (tuple(_attribute(node, name, ones)) for name in ("strides", "dilations"))
    pads = tuple(_attribute(node, "pads", [0] * 2 * rank))
    weights, count, samples = saturation.conv_weight(b, groups), 0, []
    zeros = np.zeros(len(b), np.int64) if b_zero is None else np.broadcast_to(b_zero.reshape(-1), len(b))
    width = len(b) // groups
    for sample in a:
        rows, places = saturation.conv_rows(sample, b.shape[2:], groups, strides, dilations, pads, zero)
        parts = []
        for group, (part, weight) in enumerate(zip(rows, weights, strict=True)):
            own = zeros[group * width : (group + 1) * width]
            sums, cut = _multiplied(part, zero, weight, own, saturate)
            parts.append(sums.T.reshape(-1, *places))
            count += cut
        samples.append(np.concatenate(parts))
    return np.stack(samples), count


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
