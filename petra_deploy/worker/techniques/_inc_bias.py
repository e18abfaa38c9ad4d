"""Bias correction between `prepare` and `convert`: the mean error of the rounded weights, taken out of the biases.

    changed = correct(prepared, batches)            # in place; how many layers

The same definition as for graphs (_ort_bias.py): b - E[(w' - w) x], an entry for each output channel, over the
calibration rows, where x is what the layer gets in the float model. Source: Nagel et al., arXiv 1906.04721.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from petra_deploy.worker.techniques._concat_norms import tensor_of
from petra_deploy.worker.techniques._ort_annotations import CONV

LINEAR = torch.ops.aten.linear.default


def correct(model: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Of layers with rounded weights and a bias that no other layer has."""
    errors: dict[Node, Tensor] = {}
    biases: dict[Node, Tensor] = {}
    for node in model.graph.nodes:
        if node.op != "call_function" or (node.target not in CONV and node.target is not LINEAR):
            continue
        arguments: tuple[Any, ...] = node.args
        error = _error(model, arguments[1])
        bias = _own_bias(model, arguments[2]) if len(arguments) > 2 else None
        if error is not None and bias is not None:
            errors[node], biases[node] = error, bias
    shifts = _Shifts(model, errors)
    with torch.no_grad():
        for batch in batches:
            shifts.run(*batch)
        for node, bias in biases.items():
            bias -= (shifts.sums[node] / shifts.rows).to(bias.dtype)
    return len(biases)


class _Shifts(Interpreter):
    """Runs the model, and for each layer its error on the same input; `sums` are of the means over the places."""

    def __init__(self, model: GraphModule, errors: dict[Node, Tensor]) -> None:
        super().__init__(model)
        self.errors = errors
        self.sums: dict[Node, Any] = dict.fromkeys(errors, 0.0)
        self.rows = 0

    def run(self, *batch: Any, **options: Any) -> Any:
        self.rows += len(batch[0])
        return super().run(*batch, **options)

    def run_node(self, n: Node) -> Any:
        if n in self.errors:
            given, _ = self.fetch_args_kwargs_from_env(n)
            layer: Any = n.target
            found = layer(given[0], self.errors[n], None, *given[3:])
            last = found.movedim(1, -1) if n.target in CONV else found
            self.sums[n] = self.sums[n] + len(found) * last.reshape(-1, last.shape[-1]).mean(0, dtype=torch.float64)
        return super().run_node(n)


def _error(model: GraphModule, value: Any) -> Tensor | None:
    """w' - w, where the weight is observed."""
    if not isinstance(value, Node) or value.op != "call_module":
        return None
    observer: Any = model.get_submodule(str(value.target))
    weight = tensor_of(model, value.args[0])
    if weight is None:
        return None
    scale, zero = observer.calculate_qparams()
    if scale.numel() > 1:
        shape = [-1 if axis == observer.ch_axis else 1 for axis in range(weight.dim())]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    steps = ((weight / scale).round() + zero).clamp(observer.quant_min, observer.quant_max)
    error: Tensor = ((steps - zero) * scale - weight).to(weight.dtype)
    return error


def _own_bias(model: GraphModule, value: Any) -> Tensor | None:
    """The bias itself, through an observer; None where others read it too."""
    while isinstance(value, Node) and value.op == "call_module" and len(value.users) == 1:
        value = value.args[0]
    alone = isinstance(value, Node) and value.op == "get_attr" and len(value.users) == 1
    found: Tensor | None = tensor_of(model, value) if alone else None
    return found
