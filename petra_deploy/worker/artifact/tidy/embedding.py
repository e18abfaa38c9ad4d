"""Gather int8 rows of an embedding, then dequantize those, not the whole table at each call."""

import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import Bench


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("Gather"):
        table, ids = node.inputs[0], node.inputs[1]
        source = table.producer() if table is not None else None
        if table is None or source is None or source.op_type != "DequantizeLinear":
            continue
        packed = bench.packed(table)
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if packed is None or axis != 0 or packed.axes():
            continue
        rows = bench.node(node, "Gather", [source.inputs[0], ids], {"axis": 0}).outputs[0]
        rows.type = ir.TensorType(ir.DataType.INT8)
        bench.replace(node.outputs[0], bench.node(node, "DequantizeLinear", [rows, *source.inputs[1:]]).outputs[0])
        changes += 1
    return changes
