"""An int8 linear layer with float output in one ONNX Runtime node: MatMulIntegerToFloat with bias.

    DequantizeLinear(x) -> MatMul(int8 weight) -> Add(bias)     becomes one contrib node

ONNX Runtime makes that node itself, but leaves the Add apart. Only for graphs that ONNX Runtime
will run (`lower=True`); other runtimes read the Q/DQ form.
"""

import onnx_ir as ir

from petra_deploy.worker.model.tidy.bench import CONTRIB, Bench


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("MatMul"):
        packed = bench.packed(node.inputs[1])
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if packed is None or packed.values.ndim != 2 or source is None or source.op_type != "DequantizeLinear":
            continue
        scale, add = packed.along(1), _bias_add(bench, node)
        quantized = source.inputs[0]
        if scale is None or add is None or quantized is None or len(source.inputs) < 3:
            continue
        if quantized.dtype not in (None, ir.DataType.UINT8) or bench.constant(source.inputs[1]) is None:
            continue
        bias = next(array for value in add.inputs if (array := bench.constant(value)) is not None)
        inputs = [
            quantized, bench.initializer(packed.values), source.inputs[1], bench.initializer(scale),
            source.inputs[2], None, bench.initializer(bias),
        ]  # fmt: skip
        fused = bench.node(add, "MatMulIntegerToFloat", inputs, domain=CONTRIB)
        bench.replace(add.outputs[0], fused.outputs[0])
        changes += 1
    return changes


def _bias_add(bench: Bench, node: ir.Node) -> ir.Node | None:
    """The only user of `node`, where that adds a constant vector as long as the output is wide."""
    users = node.outputs[0].consumers()
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    packed = bench.packed(node.inputs[1])
    constants = [array for value in users[0].inputs if (array := bench.constant(value)) is not None]
    fits = len(constants) == 1 and packed is not None and constants[0].shape == packed.values.shape[1:]
    return users[0] if fits else None
