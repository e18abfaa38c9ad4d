"""BatchNormalization after a Concat of convolutions goes into those convolutions' weights.

Inception-like blocks normalize the joined branches at once. The exporter's optimizer folds a norm
into the one convolution before it, not through a Concat; left there it is a float operator that
keeps everything around it from int8.
"""

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.tidy.bench import Bench


def rewrite(bench: Bench) -> int:
    changes = 0
    for norm in bench.nodes("BatchNormalization"):
        concat = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        constants = [bench.constant(value) for value in norm.inputs[1:5]]
        if concat is None or concat.op_type != "Concat" or concat.attributes["axis"].as_int() != 1:
            continue
        convolutions = [_convolution(bench, value, concat) for value in concat.inputs]
        if len(concat.outputs[0].uses()) != 1 or concat.outputs[0].is_graph_output():
            continue
        if any(c is None for c in constants) or any(c is None for c in convolutions):
            continue
        weight, bias, mean, variance = (np.asarray(c, np.float64) for c in constants)
        epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        scale = weight / np.sqrt(variance + epsilon)
        shift = bias - mean * scale
        start = 0
        for convolution in convolutions:
            if convolution is not None:
                start = _fold(bench, convolution, scale, shift, start)
        bench.replace(norm.outputs[0], concat.outputs[0])
        changes += 1
    return changes


def _convolution(bench: Bench, value: ir.Value | None, concat: ir.Node) -> ir.Node | None:
    """The Conv with constant weights that makes `value` for `concat` alone."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Conv" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node if all(bench.constant(weight) is not None for weight in node.inputs[1:] if weight is not None) else None


def _fold(bench: Bench, node: ir.Node, scale: np.ndarray, shift: np.ndarray, start: int) -> int:
    """Scale one convolution by its part of the norm, from channel `start` on; returns where the next starts."""
    kernel = bench.constant(node.inputs[1])
    before = bench.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if kernel is None:
        raise TypeError("a convolution without constant weights was let through")
    part = slice(start, start + len(kernel))
    folded = kernel * scale[part].reshape(-1, *[1] * (kernel.ndim - 1))
    bias = shift[part] + (0 if before is None else before * scale[part])
    node.resize_inputs(3)
    node.replace_input_with(1, bench.initializer(folded.astype(kernel.dtype)))
    node.replace_input_with(2, bench.initializer(bias.astype(kernel.dtype)))
    return start + len(kernel)
