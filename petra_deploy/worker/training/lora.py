"""LoRA: train a low-rank change of each large weight in place of the weight, then add it in.

    with added(model, rank=8, seed=0) as adapters:      # W + B A, A random, B zero: the model is unchanged
        fit(model, rows, distance, course, seed=0, material=Material(only=adapters.trained))
    # on leaving, merged: weights are W + B A, no parametrization is left, as many parameters as before

Linear, convolution, embedding and recurrent layers, and what MultiheadAttention projects with; a weight that
would not be smaller as two factors is trained as it is, as are biases and norms. A weight that several
layers share has one change and stays shared. Source: Hu et al. (arXiv 2106.09685), without its
factor alpha / rank, which the learning rate stands for.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

_LAYERS = (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention)


class LowRank(nn.Module):
    """Adds B A to a weight, which is taken as a matrix: its first dimension by all others."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = matrix(weight)
        self.down = nn.Parameter(torch.empty(rank, columns, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device))
        with torch.no_grad():
            bound = math.sqrt(3 / columns)
            values = torch.rand(self.down.shape, generator=generator) * 2 * bound - bound
            self.down.copy_(values)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


@dataclass(frozen=True)
class Adapters:
    trained: tuple[nn.Parameter, ...]  # factors, and the parameters that stay as they are
    weights: int  # that have a low-rank change


def matrix(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // weight.shape[0]


@contextlib.contextmanager
def added(model: nn.Module, rank: int, seed: int) -> Iterator[Adapters]:
    """Inside, large weights of `model` are trained by factors of `rank`; on leaving these are added in."""
    generator = torch.Generator().manual_seed(seed)
    changes: dict[int, tuple[nn.Parameter, LowRank]] = {}
    places: list[tuple[nn.Module, str]] = []
    for module, name in _candidates(model):
        weight = cast(nn.Parameter, module._parameters[name])
        rows, columns = matrix(weight)
        if rank * (rows + columns) < rows * columns:
            if id(weight) not in changes:
                changes[id(weight)] = weight, LowRank(weight, rank, generator)
            places.append((module, name))
    factors = tuple(p for _, change in changes.values() for p in change.parameters())
    others = tuple(p for p in model.parameters() if id(p) not in changes)
    hooks = []
    orders = {id(module): (module, list(module._parameters)) for module, _ in places}
    for module, name in places:
        weight, change = changes[id(module._parameters[name])]
        parametrize.register_parametrization(module, name, change, unsafe=True)
    for layer in {id(module): module for module, _ in places if isinstance(module, nn.RNNBase)}.values():
        hooks.append(layer.register_forward_pre_hook(_gather))
    try:
        yield Adapters((*factors, *others), len(changes))
    finally:
        for hook in hooks:
            hook.remove()
        _merge(places, changes)
        for module, order in orders.values():  # a weight that was computed comes back as the last
            kept = dict(module._parameters)
            module._parameters.clear()
            module._parameters.update({name: kept[name] for name in order})


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(layer, name) of plain weights: a computed one (weight norm, another parametrization) is left as it is."""
    for module in model.modules():
        if isinstance(module, _LAYERS) and not parametrize.is_parametrized(module):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.ndim > 1 and parameter.is_floating_point():
                    yield module, name


def _gather(layer: nn.Module, args: Any) -> None:
    """A recurrent layer keeps a list of its weights; computed ones must be put into it anew."""
    recurrent = cast(nn.RNNBase, layer)
    recurrent._flat_weights = [getattr(recurrent, name, None) for name in recurrent._flat_weights_names]


def _merge(places: list[tuple[nn.Module, str]], changes: dict[int, tuple[nn.Parameter, LowRank]]) -> None:
    for module, name in places:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    with torch.no_grad():
        for weight, change in changes.values():
            weight.copy_(change.to(weight.device)(weight))
    for layer in {id(module): module for module, _ in places if isinstance(module, nn.RNNBase)}.values():
        layer._init_flat_weights()
