"""Int8 weights that ONNX Runtime would unpack at every call, put back to float.

    settled = settle(path)              # {"layers.0.up/MatMul_12": ...}: names of nodes that are float again

A DequantizeLinear on a constant is a promise that the runtime fuses it with its consumer. Where there is no
integer kernel (ConvTranspose, a weight in three dimensions, a table read whole) it is run at each
inference, and the layer in float after it: slower than if it had never been quantized. What is left
over is seen in the graph that ONNX Runtime itself has optimized, not guessed; those weights become
float constants, and a Q/DQ pair that stands before such a layer alone goes too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.artifact.tidy import float_layers, strip
from petra_deploy.worker.artifact.tidy.bench import Bench

Array = NDArray[Any]
_ROUNDS = 2  # what its neighbour was fused with may stand alone after the first
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def settle(path: Path) -> list[str]:
    """Change the file in place; returns the nodes whose weights are float again.

    Raises Problem("mismatch") where ONNX Runtime refuses the file.
    """
    found: list[str] = []
    for _ in range(_ROUNDS):
        left = unpacked(optimized(path))
        model = ir.load(path)
        done = _restored(model, left) if left else []
        if not done:
            break
        found += done
        ir.save(model, path)
    return found


def unpacked(model: onnx.ModelProto) -> dict[str, Array]:
    """What the DequantizeLinear of constants in this graph, as it will be run, put out.

    By the name of what they read, and by that of what they write: ONNX Runtime computes constants before it runs
    and then names them by their makers, and copies a DequantizeLinear of several readers under new names.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == _DEQUANTIZE and all(name in constants for name in node.input if name):
            given = [numpy_helper.to_array(constants[name]) for name in node.input if name]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if not attributes.get("block_size"):
                wide = values(given, int(attributes.get("axis", 1)))
                found |= {node.input[0]: wide, node.output[0]: wide}
    return found


def _restored(model: ir.Model, left: Mapping[str, Array]) -> list[str]:
    bench = Bench(model)
    names: list[str] = []
    for node in bench.nodes(_DEQUANTIZE):
        source, made = node.inputs[0], node.outputs[0]
        wide = left.get(made.name or "", left.get(source.name or "")) if source is not None else None
        if wide is None:
            continue
        users = made.consumers()
        names += [user.name or user.op_type for user in users]
        bench.replace(made, bench.initializer(wide))
        for user in users:
            _without_pairs(user)
    if names:
        float_layers.rewrite(bench)
        strip.rewrite(bench)
    return names


def values(given: Sequence[Array], axis: int) -> Array:
    """What a DequantizeLinear makes of its constant inputs, float32."""
    stored, scale, *zero = given
    shape = [-1 if i == axis % stored.ndim else 1 for i in range(stored.ndim)] if scale.size > 1 else []
    shifted = stored.astype(np.float32)
    if zero:
        shifted = shifted - zero[0].astype(np.float32).reshape(shape)
    return np.asarray(shifted * scale.reshape(shape), np.float32)


def _without_pairs(user: ir.Node) -> None:
    """Let a layer that is float again read what was before a Q/DQ pair of its own.

    Not where an integer operator made it: that one puts out integers only.
    """
    for index, value in enumerate(user.inputs):
        dequantize = None if value is None else value.producer()
        if dequantize is None or dequantize.op_type != _DEQUANTIZE or value is None or len(value.uses()) != 1:
            continue
        quantize = None if dequantize.inputs[0] is None else dequantize.inputs[0].producer()
        if quantize is None or quantize.op_type != _QUANTIZE or quantize.inputs[0] is None:
            continue
        maker = quantize.inputs[0].producer()
        if maker is None or not any(v and v.producer() and v.producer().op_type == _DEQUANTIZE for v in maker.inputs):  # type: ignore[union-attr]
            user.replace_input_with(index, quantize.inputs[0])
