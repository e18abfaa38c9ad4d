"""An int8 linear layer with float output in one ONNX Runtime node: MatMulIntegerToFloat with bias.

    DequantizeLinear(x) -> MatMul(int8 weight) -> Add(bias)     becomes one contrib node
    DequantizeLinear(x) -> Gemm(int8 weight, bias) -> Relu      becomes it and the Relu

ONNX Runtime makes that node of a MatMul itself, but leaves the Add apart; a Gemm it joins with the activation behind
it before it looks for integers, and then computes it in float. One whose output is rounded next is left to become a
QGemm. Only for graphs that ONNX Runtime will run (`lower=True`); other runtimes read the Q/DQ form.
"""

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import CONTRIB, Bench, Packed


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("MatMul"):
        packed = bench.packed(node.inputs[1])
        add = _bias_add(bench, node)
        if packed is None or packed.values.ndim != 2 or add is None:
            continue
        bias = next(array for value in add.inputs if (array := bench.constant(value)) is not None)
        changes += _replace(bench, node, add, packed, bias)
    for node in bench.nodes("Gemm"):
        packed = bench.packed(node.inputs[1])
        if packed is None or not _plain(node) or _rounded_next(node):
            continue
        if node.attributes.get_int("transB", 0):
            packed = Packed(np.ascontiguousarray(packed.values.T), packed.scales.T)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        found = None if given is None else _bias(bench, given)
        if given is not None and (found is None or found.shape != packed.values.shape[1:]):
            continue
        changes += _replace(bench, node, node, packed, found)
    return changes


def _replace(bench: Bench, node: ir.Node, last: ir.Node, packed: Packed, bias: np.ndarray | None) -> bool:
    """One node in place of `node` up to `last`, where the input is uint8 on one known scale."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    scale = packed.along(1)
    if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) < 3 or scale is None:
        return False
    zero, step = bench.constant(source.inputs[2]), bench.constant(source.inputs[1])
    if zero is None or zero.dtype != np.uint8 or step is None or step.size != 1:
        return False
    inputs = [
        source.inputs[0], bench.initializer(packed.values), source.inputs[1], bench.initializer(scale),
        source.inputs[2], *([] if bias is None else [None, bench.initializer(bias)]),
    ]  # fmt: skip
    fused = bench.node(last, "MatMulIntegerToFloat", inputs, domain=CONTRIB)
    fused.name = node.name  # by which its layer is known
    bench.replace(last.outputs[0], fused.outputs[0])
    return True


def _plain(gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    return (
        not attributes.get_int("transA", 0)
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def _rounded_next(node: ir.Node) -> bool:
    """Whether all that reads it is a QuantizeLinear, at most behind a ReLU."""
    users = list(node.outputs[0].consumers())
    if len(users) == 1 and users[0].op_type == "Relu":
        users = list(users[0].outputs[0].consumers())
    return bool(users) and all(user.op_type == "QuantizeLinear" for user in users)


def _bias(bench: Bench, value: ir.Value) -> np.ndarray | None:
    """A constant bias, as it is or dequantized."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return bench.constant(value)
    stored, scale = bench.constant(node.inputs[0]), bench.constant(node.inputs[1])
    return None if stored is None or scale is None else (stored * scale).astype(np.float32).reshape(-1)


def _bias_add(bench: Bench, node: ir.Node) -> ir.Node | None:
    """The only user of `node`, where that adds a constant vector as long as the output is wide."""
    users = node.outputs[0].consumers()
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    packed = bench.packed(node.inputs[1])
    constants = [array for value in users[0].inputs if (array := bench.constant(value)) is not None]
    fits = len(constants) == 1 and packed is not None and constants[0].shape == packed.values.shape[1:]
    return users[0] if fits else None
