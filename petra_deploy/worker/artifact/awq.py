"""Activation-aware scales: inputs that matter get finer steps, the layer before takes them back. Exact in float.

    told = scale(bench, layers, rows, bits=4, block=32)
    told.scaled                 # ("blocks.0.up/MatMul", ...)
    told.left_out               # {"blocks.0.down/MatMul": "Gelu makes what it reads"}

Column i of W is multiplied by s_i and input i divided by it, where s = x^a / w^(1 - a), divided by sqrt(max s min s);
x is the mean size of an input, w that of a weight within its block, and a the one of 0, 0.05 ... 0.95 that leaves the
least squared error of the rounded layer on calibration rows; none where no scale is better. The division goes into
constants: a norm's, a bias's, columns of the layer before, through ReLU and additions. Source: Lin et al.,
AWQ (arXiv 2306.00978); x and w are Intel Neural Compressor 3.10's, whose search rounds to 4 bits whatever it is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from petra_deploy.worker.artifact import nbits
from petra_deploy.worker.artifact.tidy.bench import Bench
from petra_deploy.worker.quiet import quiet

Array = NDArray[Any]
_GRID = 20  # values of a
_ROWS = 512  # positions that judge, evenly taken
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class Told:
    scaled: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)  # layer: why


def scale(bench: Bench, layers: Sequence[ir.Node], rows: Mapping[str, Array], bits: int, block: int) -> Told:
    """Change weights and what makes their inputs, in place. `rows` are (positions, inputs) of each layer's input."""
    scaled: list[str] = []
    left: dict[str, str] = {}
    groups: dict[ir.Value, list[ir.Node]] = {}
    for layer in layers:
        if layer.inputs[0] is not None:
            groups.setdefault(layer.inputs[0], []).append(layer)
    for value, readers in groups.items():
        names = [layer.name or layer.op_type for layer in readers]
        folds = _folds(bench, value, readers)
        given = rows.get(value.name or "")
        if isinstance(folds, str) or given is None:
            left |= dict.fromkeys(names, folds if isinstance(folds, str) else "no calibration row reaches it")
            continue
        weights = [found for layer in readers if (found := weight(bench, layer)) is not None]
        scales = best(np.concatenate(weights), given[:: -(-len(given) // _ROWS)], bits, block)
        if scales is None:
            left |= dict.fromkeys(names, "no scale is better than none")
            continue
        for layer in readers:
            _multiply(bench, layer, 1, scales, inputs=True)
        for node, place in folds:
            _multiply(bench, node, place, 1 / scales)
        scaled += names
    return Told(tuple(scaled), left)


def best(weights: Array, rows: Array, bits: int, block: int) -> Array | None:
    """The scales (inputs,) float32, of the least squared error over `rows`; None where that is without any."""
    import torch

    with quiet():
        from neural_compressor.torch.algorithms.weight_only.awq import _get_act_scale, _get_weight_scale

    inputs = weights.shape[1]
    padded = np.pad(weights, ((0, 0), (0, -inputs % block)))
    given = _get_act_scale([torch.from_numpy(np.array(rows))])
    size = _get_weight_scale(torch.from_numpy(padded), block).nan_to_num(0.0)[:inputs].clamp(min=1e-4)
    chosen, least = None, _error(weights, rows, np.ones(inputs, np.float32), bits, block)
    for step in range(_GRID):
        ratio = step / _GRID
        scales = (given.pow(ratio) / size.pow(1 - ratio)).clamp(min=1e-4)
        scales = (scales / (scales.max() * scales.min()).sqrt()).numpy()
        if (error := _error(weights, rows, scales, bits, block)) < least:
            chosen, least = scales, error
    return chosen


def weight(bench: Bench, node: ir.Node) -> Array | None:
    """(outputs, inputs) float32 of a MatMul or Gemm by a constant; else None."""
    found = bench.constant(node.inputs[1])
    if found is None or found.ndim != 2 or found.dtype != np.float32:
        return None
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if node.attributes.get_int("transA", 0) or scaled:
        return None
    return found if node.attributes.get_int("transB", 0) else np.ascontiguousarray(found.T)


def _error(weights: Array, rows: Array, scales: Array, bits: int, block: int) -> float:
    rounded = nbits.rounded(weights * scales, bits, block).values() / scales
    return float(np.square(rows @ (rounded - weights).T, dtype=np.float64).mean())


def _folds(bench: Bench, value: ir.Value, readers: Sequence[ir.Node]) -> list[tuple[ir.Node, int]] | str:
    """(node, input) of the constants that a division of `value` goes into; or why there are none."""
    users = [user for user, _ in value.uses()]
    if others := sorted({user.op_type for user in users if user not in readers}):
        return f"{others[0]} reads its input too"
    if value.is_graph_output():
        return "its input is an output of the graph"
    layer = weight(bench, readers[0])
    width = 0 if layer is None else layer.shape[1]
    found: list[tuple[ir.Node, int]] = []
    while (node := value.producer()) is not None and (value in readers[0].inputs or _alone(value)):
        if node.op_type == "Relu":
            value = _first(node)
            continue
        if node.op_type in _NORMS:
            own = [place for place in range(1, len(node.inputs)) if node.inputs[place] is not None]
            fits = all(_fits(bench.constant(node.inputs[place]), width, exact=True) for place in own)
            return [*found, *((node, place) for place in own)] if fits and own else "its norm has no constants"
        if node.op_type in ("MatMul", "Gemm"):
            columns = weight(bench, node)
            if columns is None or columns.shape[0] != width:
                break
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and not _fits(bench.constant(bias), width):
                break
            return [*found, (node, 1), *([(node, 2)] if bias is not None else [])]
        place = next((i for i, x in enumerate(node.inputs) if _fits(bench.constant(x), width)), None)
        if node.op_type not in ("Add", "Mul") or place is None:
            break
        found.append((node, place))
        if node.op_type == "Mul":
            return found
        value = _first(node, 1 - place)
    return f"{node.op_type} makes what it reads" if node is not None else "it reads an input of the graph"


def _alone(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def _first(node: ir.Node, place: int = 0) -> ir.Value:
    found = node.inputs[place]
    return found if found is not None else node.outputs[0]


def _fits(constant: Array | None, width: int, *, exact: bool = False) -> bool:
    """Whether it is a constant that can be divided along the last axis without a change of the result's shape."""
    if constant is None or constant.dtype != np.float32:
        return False
    return constant.shape == (width,) if exact else constant.ndim == 0 or constant.shape[-1] in (1, width)


def _multiply(bench: Bench, node: ir.Node, place: int, factors: Array, *, inputs: bool = False) -> None:
    """By a factor for each of the inputs of a layer's weight; else for each output, or entry of the last axis."""
    array = bench.constant(node.inputs[place])
    if array is None:
        return
    layer = node.op_type in ("MatMul", "Gemm") and place == 1
    turned = bool(node.attributes.get_int("transB", 0))
    first = layer and turned != inputs  # along which axis of the weight
    changed = array * (factors[:, None] if first else factors)
    node.replace_input_with(place, bench.initializer(changed.astype(np.float32)))
