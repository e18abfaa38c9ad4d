"""A mean over all spatial axes is GlobalAveragePool: integer and blocked-layout kernels know that.

The exporter writes AdaptiveAvgPool(1) and `x.mean((2, 3))` as ReduceMean, for which ONNX Runtime
has no int8 kernel, so the convolution before it would stay in float.
"""

import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import Bench

SOURCES = ("Conv", "Relu", "Clip", "Add", "Mul", "Concat", "DequantizeLinear", "BatchNormalization", "HardSwish")


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("ReduceMean"):
        data, axes = node.inputs[0], bench.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        source = data.producer() if data is not None else None
        if data is None or data.shape is None or axes is None or source is None or source.op_type not in SOURCES:
            continue
        rank = data.shape.rank()
        if rank < 3 or sorted(int(axis) % rank for axis in axes.reshape(-1)) != list(range(2, rank)):
            continue
        pooled = bench.node(node, "GlobalAveragePool", [data]).outputs[0]
        keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        if keep:
            bench.replace(node.outputs[0], pooled)
        else:
            _flatten(bench, node, pooled)
        changes += 1
    return changes


def _flatten(bench: Bench, node: ir.Node, pooled: ir.Value) -> None:
    """Drop the spatial axes after the pooling, and after its Q/DQ pair where there is one.

    Between the pooling and its QuantizeLinear a Flatten would keep the two from fusing.
    """
    users = node.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "QuantizeLinear" and not node.outputs[0].is_graph_output():
        quantize = users[0]
        quantize.replace_input_with(0, pooled)
        flat = bench.node(quantize, "Flatten", [quantize.outputs[0]], {"axis": 1}, after=True)
        flat.outputs[0].type = quantize.outputs[0].type
        quantize.outputs[0].shape = None
        for user, index in list(quantize.outputs[0].uses()):
            if user is not flat:
                user.replace_input_with(index, flat.outputs[0])
    else:
        bench.replace(node.outputs[0], bench.node(node, "Flatten", [pooled], {"axis": 1}).outputs[0])
