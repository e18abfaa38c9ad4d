"""A layer that was left in float between int8 ones stays in float.

ONNX Runtime 1.32 rounds the weights of any Conv, ConvTranspose or Gemm whose input comes through a DequantizeLinear
on one scale, per tensor and without a word (its WeightBiasQuantization). So such a layer reads
through a DequantizeLinear of its own, which has that scale once a channel: the same numbers, and no match.
"""

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import Bench


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("Conv", "ConvTranspose", "Gemm"):
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        weight = None if node.inputs[1] is None else node.inputs[1].const_value
        if source is None or source.op_type != "DequantizeLinear" or weight is None:
            continue
        scale = bench.constant(source.inputs[1])
        zero = bench.constant(source.inputs[2]) if len(source.inputs) > 2 else None
        if weight.dtype != ir.DataType.FLOAT or scale is None or scale.size != 1 or zero is None:
            continue
        axis, channels = _channels(node, weight)
        inputs = [source.inputs[0], *(bench.initializer(np.repeat(one.reshape(-1), channels)) for one in (scale, zero))]
        own = bench.node(node, "DequantizeLinear", inputs, {"axis": axis})
        node.replace_input_with(0, own.outputs[0])
        changes += 1
    return changes


def _channels(node: ir.Node, weight: ir.TensorProtocol) -> tuple[int, int]:
    """The input's channel axis, and how many there are."""
    shape = [int(size) for size in weight.shape.numpy()]
    if node.op_type == "Conv":
        return 1, shape[1] * node.attributes.get_int("group", 1)
    if node.op_type == "ConvTranspose":
        return 1, shape[0]
    swapped = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    return (0 if swapped[0] else 1), shape[1 if swapped[1] else 0]
