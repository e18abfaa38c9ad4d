"""Parts of a model that can be int8 or float each, in the user's own names; and what int8 does to one alone.

    names = parts(model)                            # ["stem", "stages.0.0", "stages.0.1", "head"]
    changed = rounded(model, "stages.0.1")          # a copy in which this part computes as if in int8
    within("stages.0.1.conv1", names)               # "stages.0.1"

A part is an element of a Sequential or ModuleList (a residual block, an encoder layer), or a layer with weights
outside of any. A small last layer is none: in float it costs nothing (quantize_inc leaves it there).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from petra_deploy.core.plan import Knob, Layout
from petra_deploy.worker.model import adapter, surgery

KIND = "precision"
WEIGHTED = (
    nn.Linear, nn.Embedding, nn.LSTM, nn.MultiheadAttention,
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
SMALL_HEAD = 16_384  # weights; below this a last layer's Q/DQ pair costs more than int8 saves
WORST_DB, BEST_DB = -100.0, 200.0


def parts(model: nn.Module) -> list[str]:
    """Names in the model's order; [] where there is one part only, and so nothing to choose."""
    root = getattr(model, "inner", model)
    found = list(_parts(root, "", inside=False))
    last = adapter.submodule(model, found[-1]) if found else None
    if isinstance(last, nn.Linear) and last.weight.numel() < SMALL_HEAD:
        found.pop()
    return found if len(found) > 1 else []


def nothing(model: nn.Module) -> str | None:
    """Why no part can be int8 where the one layer of a kind that can is a small last one; else None."""
    weighted = [name for name, m in adapter.submodules(model) if isinstance(m, WEIGHTED)]
    owners = [name for name, m in adapter.submodules(model) if next(m.parameters(recurse=False), None) is not None]
    if len(weighted) != 1 or weighted != owners[-1:]:
        return None
    last = adapter.submodule(model, weighted[0])
    if not isinstance(last, nn.Linear) or last.weight.numel() >= SMALL_HEAD:
        return None
    return f"its only layer that can be int8 is a last one with fewer than {SMALL_HEAD:,} weights, which stays in float"


def _parts(module: nn.Module, name: str, *, inside: bool) -> Iterator[str]:
    """`inside`: whether it is an element of a container."""
    if isinstance(module, WEIGHTED):
        yield name
        return
    weighted = sum(isinstance(m, WEIGHTED) for m in module.modules())
    if not weighted:
        return
    container = isinstance(module, CONTAINERS)
    repeats = any(isinstance(m, CONTAINERS) and _weighted_children(m) > 1 for m in module.modules())
    if name and not container and (inside or not repeats):
        yield name
        return
    if name and inside and not any(isinstance(m, CONTAINERS) for m in list(module.modules())[1:]):
        yield name  # a plain Sequential in a Sequential: convolution, norm, activation
        return
    for child, part in module.named_children():
        yield from _parts(part, f"{name}.{child}" if name else child, inside=container)


def _weighted_children(container: nn.Module) -> int:
    return sum(any(isinstance(m, WEIGHTED) for m in child.modules()) for child in container.children())


def knob(layout: Layout) -> dict[str, Knob]:
    """The option `keep_float` of a quantizer: which parts stay in float, the most sensitive first, at most half."""
    if len(layout.of_kind(KIND)) < 2:
        return {}
    return {"keep_float": Knob.subset(KIND, high=0.5, strength=False, most_sensitive=True)}


def within(name: str, names: Iterable[str]) -> str:
    """The one of `names` that the module called `name` is, or is a part of; empty where there is none."""
    return next((part for part in names if name == part or name.startswith(f"{part}.")), "")


def rounded(model: nn.Module, name: str) -> nn.Module:
    """A copy of `model` whose part `name` has int8 weights, and inputs of its layers rounded to uint8.

    Weights per output channel, symmetric; activations over the range that the batch at hand has.
    """
    copy = surgery.twin(model)
    part = adapter.submodule(copy, name)
    for layer in [m for m in part.modules() if isinstance(m, WEIGHTED)]:
        for path, parameter in list(layer.named_parameters()):
            if parameter.dim() >= 2 and parameter.is_floating_point():
                owner, _, own = path.rpartition(".")
                table = isinstance(layer, nn.Embedding)
                setattr(layer.get_submodule(owner), own, nn.Parameter(_weights(parameter.detach(), table=table)))
        layer.register_forward_pre_hook(_inputs)
    return copy


def _weights(values: Tensor, *, table: bool) -> Tensor:
    axes = list(range(values.dim())) if table else list(range(1, values.dim()))
    scale = values.abs().amax(axes, keepdim=True).clamp(min=1e-12) / 127
    return (values / scale).round() * scale


def _inputs(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_activations(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


def _activations(x: Tensor) -> Tensor:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale


def sqnr_db(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """Signal to quantization noise in dB, of the worst output; floating ones only. In [-100, 200].

    10 log10(sum a^2 / sum (a - b)^2): at 20 dB the noise is a tenth of the signal, at 0 dB as large as it.
    """
    worst = BEST_DB
    for a, b in zip(expected, found, strict=True):
        if a.dtype.kind != "f" or not a.size:
            continue
        finite = np.isfinite(a)  # a mask may be minus infinity
        if not np.isfinite(b[finite]).all():
            return WORST_DB
        a, b = (np.where(finite, values, 0.0).astype(np.float64) for values in (a, b))
        signal, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
        if noise > 0:
            worst = min(worst, 10 * math.log10(signal / noise) if signal > 0 else WORST_DB)
    return max(round(worst, 2), WORST_DB)
