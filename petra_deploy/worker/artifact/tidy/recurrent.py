"""An LSTM with int8 weights becomes ONNX Runtime's DynamicQuantizeLSTM.

A DequantizeLinear on LSTM weights would run at every call, and the LSTM in float after it. There
is no portable int8 LSTM in ONNX, and no int8 GRU in ONNX Runtime.
"""

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import CONTRIB, Bench, Packed


def rewrite(bench: Bench) -> int:
    changes = 0
    for node in bench.nodes("LSTM"):
        w, r = bench.packed(node.inputs[1]), bench.packed(node.inputs[2])
        if w is None or r is None or ("layout" in node.attributes and node.attributes["layout"].as_int()):
            continue
        w_scale, r_scale = _scale(w), _scale(r)
        if w_scale is None or r_scale is None:
            continue
        optional = [node.inputs[index] if index < len(node.inputs) else None for index in range(3, 8)]
        inputs: list[ir.Value | None] = [node.inputs[0], _stored(bench, w), _stored(bench, r), *optional]
        for scale in (w_scale, r_scale):
            inputs += [bench.initializer(scale), bench.initializer(np.zeros(scale.shape, np.int8))]
        attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
        fused = bench.node(
            node, "DynamicQuantizeLSTM", inputs, attributes, domain=CONTRIB, outputs=len(node.outputs)
        )  # fmt: skip
        for old, new in zip(node.outputs, fused.outputs, strict=True):
            bench.replace(old, new)
        changes += 1
    return changes


def _stored(bench: Bench, packed: Packed) -> ir.Value:
    return bench.initializer(packed.values.transpose(0, 2, 1))  # (directions, inputs, 4 * hidden)


def _scale(packed: Packed) -> np.ndarray | None:
    """(directions,) where a direction has one scale, (directions, 4 * hidden) where each row has."""
    axes = set(packed.axes())
    if axes <= {0}:
        return np.ascontiguousarray(packed.scales[:, 0, 0])
    return np.ascontiguousarray(packed.scales[:, :, 0]) if axes <= {0, 1} else None
