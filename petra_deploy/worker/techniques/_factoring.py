"""What the forms of low rank share: how layers are called, which are worth factoring, and the exchange itself."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Tools
from petra_deploy.core.plan import Group, Layout
from petra_deploy.core.target import Target
from petra_deploy.worker.measure import factors
from petra_deploy.worker.model import adapter, rank, surgery, trial
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.factored import Factored, in_channels, matrix, obstacle, sound, svd
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.passes import batches, watching
from petra_deploy.worker.model.trial import Tensors, Trial

Made = tuple[Factored, int, int]  # the factors, the full rank, the rank


@dataclass
class Exchange:
    """What came of the layers named in a strategy's step."""

    ranks: dict[str, list[int]] = field(default_factory=dict)  # [full rank, rank, parameters before, after]
    kept: dict[str, str] = field(default_factory=dict)  # layers that stayed as they were, and why
    gone: list[str] = field(default_factory=list)


def offered(look: Look, kind: str, cut: factors.Cut, accepts: Callable[[nn.Module], bool]) -> Found:
    """A group for each layer that runs faster as two; its width is the largest rank at which it does."""
    names, refused = sound(look.model, look.trial, accepts)
    groups: list[Group] = []
    for name, wide in called(look.model, names, look.trial.feeds[0]).items():
        found = factors.worth(wide, cut)
        if found.rank:
            groups.append(look.group(name, kind, found.rank, [name]))
        else:
            refused[name] = found.why
    return Found(tuple(groups), refused)


def called(model: nn.Module, names: list[str], example: Tensors) -> dict[str, factors.Wide]:
    """How each layer is called for one row of the model's input."""
    count = len(example[0]) if example[0].dim() else 1
    with watching(model, names) as seen:
        trial.outputs(model, example)
    found = {}
    for name, calls in seen.items():
        (args, kwargs), _ = calls[0]
        x = args[0] if args else next(iter(kwargs.values()))
        shape = tuple(x.shape)
        if shape and shape[0] % count == 0:
            shape = (max(shape[0] // count, 1), *shape[1:])
        found[name] = _wide(adapter.submodule(model, name), shape)
    return found


def _wide(layer: Any, shape: tuple[int, ...]) -> factors.Wide:
    weight = tuple(layer.weight.shape)
    if isinstance(layer, nn.Linear):
        return factors.Wide("linear", shape if len(shape) > 1 else (1, *shape), weight)
    if len(shape) == len(weight) - 1:  # no batch
        shape = (1, *shape)
    pads = layer.padding
    if isinstance(pads, str):
        pads = tuple((k - 1) * d // 2 if pads == "same" else 0
                     for k, d in zip(layer.kernel_size, layer.dilation, strict=True))  # fmt: skip
    return factors.Wide("conv", shape, weight, layer.stride, pads, layer.dilation)


def no_reason(layout: Layout, target: Target, kind: str, what: str) -> tuple[str, ...]:
    """Obstacles: a processor that is not this one's kind, or no layer that gains."""
    if target.device != "cpu":
        return (f"whether factors run faster is measured on a processor, and {target.name} is a GPU",)
    if layout.of_kind(kind):
        return ()
    reasons = layout.refusals(kind)
    return (f"no {what} gains as two factors ({reasons[0]})" if reasons else f"the model has no {what}",)


def exchange(
    model: nn.Module, levels: Mapping[str, float], worth: Mapping[str, int], example: Tensors,
    accepts: Callable[[nn.Module], bool], make: Callable[[str, Any, float], Made | str],
) -> tuple[nn.Module, Exchange]:  # fmt: skip
    """A copy of `model`, layers of its own, with the factors of `make` in place of the layers named in `levels`.

    `make` answers with words where a layer should stay as it is. Raises Problem("unsupported") for a name
    that is no layer which can be factored, and where the model does not run with the factors.
    """
    done = Exchange()
    small = surgery.twin(model)
    given = Trial(model, example)
    names, refused = sound(model, given, accepts)
    for name, level in levels.items():
        if gone(model, name):
            done.gone.append(name)
            continue
        try:
            layer = adapter.submodule(model, name)
        except AttributeError:
            raise Problem("unsupported", f"the model has no layer {name!r}", "name layers as inspect does") from None
        if isinstance(layer, Factored):
            done.kept[name] = "it is factored already"
            continue
        if name not in names:
            why = refused.get(name) or obstacle(model, layer) or f"it is a {type(layer).__name__}"
            raise Problem("unsupported", f"{name!r} cannot be factored: {why}")
        if level == 0:
            done.kept[name] = "nothing of its rank is to go"
            continue
        found = make(name, layer, level)
        if isinstance(found, str):
            done.kept[name] = found
            continue
        pair, full, chosen = found
        sizes = [surgery.size(layer), surgery.size(pair)]
        if sizes[1] >= sizes[0]:
            done.kept[name] = f"at rank {chosen} its factors have no fewer weights"
        elif name in worth and chosen > worth[name]:
            done.kept[name] = f"measured, it runs faster only up to rank {worth[name]}, and this is {chosen}"
        else:
            adapter.replace(small, name, pair)
            done.ranks[name] = [full, chosen, *sizes]
    if done.ranks and (reason := given.breaks(small)):
        raise Problem("unsupported", f"with factors in place of {', '.join(done.ranks)} {reason}")
    return surgery.own(small), done


def halved(model: nn.Module, group: Group) -> nn.Module:
    """A copy of `model` in which the group's layer has half of its width as rank, in the channel form."""
    small = surgery.twin(model)
    layer = adapter.submodule(small, group.name)
    left, _, right = svd(matrix(layer))
    half = max(group.width // 2, 1)
    adapter.replace(small, group.name, in_channels(layer, left[:, :half], right[:half]))
    return small


def channel_maker(
    model: nn.Module, levels: Mapping[str, float], select: rank.Rule, round_to: int, tools: Tools,
    accepts: Callable[[nn.Module], bool],
) -> Callable[[str, Any, float], Made | str]:  # fmt: skip
    """For `exchange`: factors in the channel form, of the rank that `select` says; calibration is run once at most."""
    named = [name for name, layer in adapter.submodules(model) if name in levels and accepts(layer)]

    @functools.cache
    def seen() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        return variances(model, named, tools)

    def make(name: str, layer: Any, level: float) -> Made | str:
        values, shift = matrix(layer), None
        if select == "explained_variance":
            if name not in seen():
                return "it is not called on the calibration rows"
            singular, left, mean = seen()[name]
            chosen = rank.rounded(rank.kept(singular, select, level), round_to, min(values.shape))
            left = left[:, :chosen]
            right, shift = left.T @ values, mean - left @ (left.T @ mean)
        else:
            left, singular, right = svd(values)
            chosen = rank.rounded(rank.kept(singular, select, level), round_to, min(values.shape))
            left, right = left[:, :chosen], right[:chosen]
        return in_channels(layer, left, right, shift), min(values.shape), chosen

    return make


def variances(model: nn.Module, names: Sequence[str], tools: Tools) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Of each layer's outputs on calibration rows, without its bias, in float64.

    (standard deviations along the principal axes, largest first; the axes as columns; the mean)
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    for batch in batches(tools.calibration, tools.signature):
        with watching(model, names) as seen:
            trial.outputs(model, batch)
        for name, calls in seen.items():
            layer = adapter.submodule(model, name)
            bias = getattr(layer, "bias", None)
            for _, result in calls:
                y = result.movedim(1 if result.dim() > 2 else -1, -1) if isinstance(layer, _ConvNd) else result
                y = y.reshape(-1, y.shape[-1]).double()
                y = y if bias is None else y - bias.detach().double()
                count, first, second = sums.get(name, (0, 0.0, 0.0))
                sums[name] = count + len(y), first + y.sum(0), second + y.T @ y
    found = {}
    for name, (count, first, second) in sums.items():
        mean = first / count
        values, axes = torch.linalg.eigh(second / count - torch.outer(mean, mean))
        found[name] = values.flip(0).clamp_min(0).sqrt(), axes.flip(1), mean
    return found


def facts(done: Exchange, model: nn.Module, small: nn.Module) -> dict[str, object]:
    return {
        "ranks": done.ranks,
        "kept": done.kept,
        "gone": sorted(done.gone),
        "parameters": [surgery.size(model), surgery.size(small)],
    }
