"""Distillation of what layers say inside: relations between rows, and between positions, not channels.

    relations = Relations(teacher, shared(model, teacher, example), features=1.0, attention=1.0)
    with relations.watching(model):
        relations.ask(inputs)               # the original runs on the batch: about its forward pass a step
        outputs = model(*inputs)
        relations.terms()                   # {"features": ..., "attention": ...}, each times its weight

A pruned layer has fewer channels than the original's, so no channel is compared with another. Layers
are paired by name. For an output of n rows, A (n, numbers a row):

- features: G = A A' with rows brought to length 1; the mean squared distance of its rows from the
  original's, 0 to 2. Similarity-preserving distillation, Tung and Mori (arXiv 1907.09682), times n.
- attention, where the output is (rows, tokens, width): each row's softmax(X X' / sqrt(width)) over
  tokens; its KL divergence from the original's. As values are related in MiniLM (arXiv 2002.10957):
  heads and width do not matter.
- attention, where channels come first (images, series): the mean square over channels at each
  position, brought to length 1; the squared distance from the original's. Zagoruyko and
  Komodakis (arXiv 1612.03928).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from petra_deploy.worker.model import adapter
from petra_deploy.worker.model.blocks import CONTAINERS, gone

Form = Literal["tokens", "maps", "rows"]  # "rows": only whole rows can be compared
_LAYERS = 4  # compared, spread over the depth


@dataclass(frozen=True)
class Shared:
    """A layer of the same name in both models; `form` says how its positions are compared."""

    name: str
    form: Form


def shared(model: nn.Module, teacher: nn.Module, example: Sequence[Tensor]) -> tuple[Shared, ...]:
    """Up to four layers, spread over the order in which they are called, the deepest among them.

    Blocks (children of a Sequential or ModuleList, with parts of their own) where there are any,
    else single layers with weights, but for the last: its output is the model's own.
    """
    ours, theirs = _answers(model, example), _answers(teacher, example)
    pairs = [
        (block, Shared(name, form))
        for name, (block, tensor) in ours.items()
        if name in theirs and (form := _form(adapter.submodule(model, name), tensor, theirs[name][1]))
    ]
    found = [layer for block, layer in pairs if block] or [layer for _, layer in pairs][:-1]
    if len(found) > _LAYERS:
        found = [found[round((i + 1) * len(found) / _LAYERS) - 1] for i in range(_LAYERS)]
    return tuple(found)


class Relations:
    def __init__(self, teacher: nn.Module, layers: Sequence[Shared], features: float, attention: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.features, self.attention = features, attention
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms."""
        return tuple(name for name, weight in (("features", self.features), ("attention", self.attention)) if weight)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside, what the layers answer is kept until the terms are taken."""
        names = [layer.name for layer in self.layers]
        with _kept(model, names, self._ours), _kept(self.teacher, names, self._theirs):
            yield

    def ask(self, inputs: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self.teacher(*inputs)

    def terms(self) -> dict[str, Tensor]:
        """Means over the layers, each times its weight; a term of weight 0, or of no layer, is left out."""
        found: dict[str, list[Tensor]] = {"features": [], "attention": []}
        for layer in self.layers:
            a, b = self._ours.get(layer.name), self._theirs.get(layer.name)
            if a is None or b is None:
                continue
            if self.features:
                found["features"].append(self.features * row_distance(a, b))
            if self.attention and layer.form == "tokens":
                found["attention"].append(self.attention * token_distance(a, b))
            elif self.attention and layer.form == "maps":
                found["attention"].append(self.attention * map_distance(a, b))
        self._ours.clear()
        self._theirs.clear()
        return {name: torch.stack(each).mean() for name, each in found.items() if each}


def row_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Both (n, ...): mean squared distance of the rows of their similarity matrices, brought to length 1."""
    a, b = (F.normalize(t.flatten(1) @ t.flatten(1).T, dim=1) for t in (ours, theirs))
    return (a - b).square().sum(1).mean()


def token_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Both (n, tokens, width): mean KL divergence of token-to-token similarities from the original's."""
    a, b = (F.log_softmax(t @ t.transpose(1, 2) / t.shape[2] ** 0.5, dim=2) for t in (ours, theirs))
    return (b.exp() * (b - a)).sum(2).mean()


def map_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Both (n, channels, ...): mean squared distance of the maps of mean squares, brought to length 1."""
    a, b = (F.normalize(t.square().mean(1).flatten(1), dim=1) for t in (ours, theirs))
    return (a - b).square().sum(1).mean()


def _form(module: nn.Module, ours: Tensor, theirs: Tensor) -> Form | None:
    """How two outputs can be compared; None where not even their rows are alike."""
    if ours.ndim < 2 or theirs.ndim < 2 or len(ours) != len(theirs):
        return None
    if ours.ndim != theirs.ndim or ours.ndim == 2:
        return "rows"
    differing = [axis for axis in range(1, ours.ndim) if ours.shape[axis] != theirs.shape[axis]]
    if not differing:  # nothing was cut: by the kind of layer
        first = ours.ndim > 3 or any(isinstance(m, _ConvNd | _BatchNorm) for m in module.modules())
        return "maps" if first else "tokens"
    if differing == [1]:
        return "maps"
    return "tokens" if differing == [2] and ours.ndim == 3 else "rows"


def _answers(model: nn.Module, example: Sequence[Tensor]) -> dict[str, tuple[bool, Tensor]]:
    """Name -> (whether it is a block, output) of the layers that may be compared, as they are called."""
    names, blocks = [], set()
    for name, module in adapter.submodules(model):
        if next(module.parameters(), None) is None or gone(model, name) or isinstance(module, CONTAINERS):
            continue
        parent = adapter.submodule(model, name.rpartition(".")[0]) if "." in name else getattr(model, "inner", model)
        has_parts = next(module.children(), None) is not None
        if isinstance(parent, CONTAINERS) and has_parts:
            blocks.add(name)
        if name in blocks or not has_parts:
            names.append(name)
    kept: dict[str, Tensor] = {}
    with torch.no_grad(), _kept(model, names, kept):
        model(*example)
    return {name: (name in blocks, tensor) for name, tensor in kept.items() if tensor.is_floating_point()}


@contextlib.contextmanager
def _kept(model: nn.Module, names: Sequence[str], into: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the (first) output of each layer's last call is put into `into`."""
    hooks = []
    for name in names:

        def keep(_: nn.Module, args: Any, result: Any, name: str = name) -> None:
            found = next(iter(result.values()), None) if isinstance(result, Mapping) else result
            first = found[0] if isinstance(found, tuple | list) and found else found
            if isinstance(first, Tensor):
                into[name] = first

        hooks.append(adapter.submodule(model, name).register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
