"""Whole stages of a network, and the smallest thing that can stand where one was.

    found = removable(model, Trial(model, example), signature)
    found.names                              # ("stages.0", "stages.1.0", "stages.1", ...)
    shortcut(model, "stages.1", example, "mix")        # pooling for the stride, 1x1 for the channels
    fit(shortcut, x, y)                      # least squares: what the stage gave, of its pooled input

A stage is what blocks.py takes for a block, but changes the number of channels or the size of the map, or
is an nn.Sequential of several blocks. Channels are the second dimension where its first layer is a convolution, else
the last. "pad" takes no weights: further channels are zero; fewer channels are mixed all the same.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from petra_deploy.core.workload import Signature
from petra_deploy.worker.model import adapter, surgery, trial
from petra_deploy.worker.model.blocks import Blocks, PassThrough, Source, candidates, first_of
from petra_deploy.worker.model.passes import watching
from petra_deploy.worker.model.trial import Tensors, Trial

Channels = Literal["mix", "pad"]
Pool = tuple[int, int, int]  # kernel, stride, padding along one dimension
_RIDGE = 1e-5
_LEAST = 2  # times as many weights as its stand-in has
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_MIXES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Shortcut(PassThrough):
    """Pools its input, then mixes its channels or adds zeros to them; else it is a PassThrough.

    `last`: channels are the last dimension, not the second.
    """

    def __init__(self, stage: "Stage", channels: Channels) -> None:
        super().__init__(stage.arity, stage.source)
        self.last = stage.last
        kernels, strides, pads = zip(*stage.pools, strict=True) if stage.pools else ((), (), ())
        self.pool: nn.Module | None = None
        if any(pool != (1, 1, 0) for pool in stage.pools):
            self.pool = _POOLS[len(stage.pools) - 1](
                kernels, strides, pads, ceil_mode=stage.partial, count_include_pad=False
            )
        self.mix: nn.Module | None = None
        before, after = stage.channels
        self.zeros = max(after - before, 0) if channels == "pad" else 0  # a fixed number: pruning counts on it
        if before != after and not self.zeros:
            kind = nn.Linear if stage.last else _MIXES[len(stage.pools)]
            self.mix = kind(*stage.channels, *(() if kind is nn.Linear else (1,)))

    def change(self, x: Tensor) -> Tensor:
        x = self.pooled(x)
        if self.mix is not None:
            return cast(Tensor, self.mix(x))
        behind = 0 if self.last else x.dim() - 2
        return nn.functional.pad(x, (0, 0) * behind + (0, self.zeros)) if self.zeros else x

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return x
        if not self.last:
            return cast(Tensor, self.pool(x))
        return cast(Tensor, self.pool(x.movedim(-1, 1))).movedim(1, -1)


@dataclass(frozen=True)
class Stage:
    name: str
    source: Source
    arity: int | None
    last: bool
    channels: tuple[int, int]  # before and after
    pools: tuple[Pool, ...]  # one a dimension of the map
    partial: bool  # a last window may be smaller: as a padded convolution with a stride, it gives the larger size


def removable(model: nn.Module, tried: Trial, signature: Signature) -> Blocks:
    """The stages that the model runs without, one at a time and all at once; why others must stay."""
    refused: dict[str, str] = {}
    sound: list[str] = []
    for name, found in _seen(model, tried.feeds, signature).items():
        reason = found if isinstance(found, str) else _needed(model, found, tried) or _breaks(model, [found], tried)
        if reason is None:
            sound.append(name)
        else:
            refused[name] = reason
    stages = [cast(Stage, look(model, name, tried.feeds, signature)) for name in outermost(sound)]
    if stages and (reason := _breaks(model, stages, tried)):
        return Blocks((), refused | dict.fromkeys(sound, f"without all of the stages {reason}"))
    return Blocks(tuple(sound), refused)


def _needed(model: nn.Module, stage: Stage, tried: Trial) -> str | None:
    """Why the stage should not go though the model would run without it."""
    weights = surgery.size(adapter.submodule(model, stage.name))
    if stage.channels[0] != stage.channels[1] and _LEAST * stage.channels[0] * stage.channels[1] > weights:
        return "what would stand in its place is half as large as it, or larger"
    with watching(model, [stage.name]) as seen:
        outputs = {t.data_ptr() for t in trial.outputs(model, tried.feeds[0])}
    if any(first_of(result).data_ptr() in outputs for _, result in seen[stage.name]):
        return "what it gives is the model's output"
    return None


def look(model: nn.Module, name: str, feeds: list[Tensors], signature: Signature | None = None) -> Stage | str:
    """What the stage does to shapes, or why it cannot be replaced.

    Raises AttributeError for a name that the model does not have. Where the signature has dimensions
    without a fixed size, the stage is also called on a smaller map.
    """
    return _seen(model, feeds, signature, [name]).get(name, "it is not called, or does not change what it gets")


def outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def heir(model: nn.Module, name: str) -> str | None:
    """The layer that now makes the channels of the layer called `name`, which was in a stage that is gone."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        outer = ".".join(parts[:end])
        try:
            found = adapter.submodule(model, outer)
        except AttributeError:
            return None
        if isinstance(found, Shortcut):
            return f"{outer}.mix" if found.mix is not None else None
    return None


def fit(through: Shortcut, gram: Tensor, cross: Tensor) -> None:
    """Set `mix` by least squares with a slight ridge, from sums over positions, in float64.

    `gram` is the sum of the outer products of (pooled input, 1) with itself, (c + 1, c + 1); `cross` that with
    the stage's output, (c + 1, d).
    """
    mix = cast(Any, through.mix)
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, cross)
    with torch.no_grad():
        mix.weight.copy_(solved[:-1].T.reshape(mix.weight.shape))
        mix.bias.copy_(solved[-1])


def explained(through: Shortcut, gram: Tensor, cross: Tensor, square: float) -> float:
    """The share of the output's variance that `mix` explains; `square` is the sum of all outputs' squares."""
    mix = cast(Any, through.mix)
    solved = torch.cat([mix.weight.detach().flatten(1), mix.bias.detach()[:, None]], 1).double().T
    error = square - 2 * float((solved * cross).sum()) + float((solved * (gram @ solved)).sum())
    spread = square - float(cross[-1].square().sum() / gram[-1, -1])
    return round(1 - error / max(spread, 1e-12), 4)


def sums(through: Shortcut, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What `fit` takes, of one call: the stage's input and its output."""
    x = through.pooled(x)
    if not through.last:
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    x, y = x.reshape(-1, x.shape[-1]).double(), y.reshape(-1, y.shape[-1]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return x.T @ x, x.T @ y


def _breaks(model: nn.Module, stages: list[Stage], tried: Trial) -> str | None:
    changed = surgery.twin(model)
    for stage in stages:
        adapter.replace(changed, stage.name, like(model, Shortcut(stage, "mix")))
    return tried.breaks(changed)


def like(model: nn.Module, through: Shortcut) -> Shortcut:
    """In eval mode and in the dtype of the model's weights."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return through.to(dtype).eval()


def _seen(
    model: nn.Module, feeds: list[Tensors], signature: Signature | None, names: list[str] | None = None
) -> dict[str, Stage | str]:
    """Each candidate that changes shapes or holds several blocks; a reason in place of one that cannot be replaced."""
    wanted = names if names is not None else [name for name, _ in candidates(model)]
    with watching(model, wanted) as seen:
        for example in feeds:
            trial.outputs(model, example)
    dynamic = signature is not None and any(isinstance(n, str) for spec in signature.inputs for n in spec.shape[1:])
    found: dict[str, Stage | str] = {}
    for name, calls in seen.items():
        module = adapter.submodule(model, name)
        stage = _read(name, module, calls, dynamic)
        if isinstance(stage, str) or names is not None or _changes(stage) or _holds_several(module):
            found[name] = stage
    return found


def _changes(stage: Stage) -> bool:
    return stage.channels[0] != stage.channels[1] or any(pool != (1, 1, 0) for pool in stage.pools)


def _holds_several(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and sum(next(m.children(), None) is not None for m in module) > 1


def _read(name: str, module: nn.Module, calls: list[Any], dynamic: bool) -> Stage | str:
    (args, kwargs), result = calls[0]
    source = next((s for s, v in [*enumerate(args), *kwargs.items()] if _is_map(v)), None)
    if source is None or not _is_map(first_of(result)):
        return "it does not go from one floating-point tensor to another"
    last = not isinstance(next((m for m in module.modules() if m._parameters), None), _ConvNd)
    axis = -1 if last else 1
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for (given, named), out in calls:
        x, y = given[source] if isinstance(source, int) else named[source], first_of(out)
        if x.dim() != y.dim() or x.shape[0] != y.shape[0] or x.dtype != y.dtype:
            return "its output has other dimensions than its input"
        sizes.append((tuple(x.shape), tuple(y.shape)))
        if dynamic and x.dim() > 2:
            smaller = x.clone()
            for dim in _map(x.dim(), last):
                smaller = smaller.narrow(dim, 0, max(x.shape[dim] - 1, 1))
            try:
                sizes.append(
                    (tuple(smaller.shape), tuple(first_of(_call(module, given, named, source, smaller)).shape))
                )
            except Exception:  # other arguments have the old size, or code has it written into it
                return "sizes are not fixed, and what it makes of another size cannot be seen"
    if len({(x[axis], y[axis]) for x, y in sizes}) > 1:
        return "the number of its channels is not the same in every call"
    along = [{(x[dim], y[dim]) for x, y in sizes} for dim in _map(len(sizes[0][0]), last)]
    pools: list[Pool | None] = [_partial(each) for each in along]
    if not (partial := None not in pools):
        pools = [_pool(each) for each in along]
    if len(pools) > 3 or any(pool is None for pool in pools):
        return "no pooling gives the size of its output"
    (x, y), arity = sizes[0], len(result) if isinstance(result, tuple) else None
    return Stage(name, cast(Source, source), arity, last, (x[axis], y[axis]), tuple(p for p in pools if p), partial)


def _call(module: nn.Module, args: Any, kwargs: Any, source: Any, x: Tensor) -> Any:
    if isinstance(source, int):
        args = (*args[:source], x, *args[source + 1 :])
    else:
        kwargs = {**kwargs, source: x}
    with torch.no_grad():
        return module(*args, **kwargs)


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1


def _map(dims: int, last: bool) -> range:
    """The dimensions that are neither rows nor channels."""
    return range(1, dims - 1) if last else range(2, dims)


def _partial(sizes: set[tuple[int, int]]) -> Pool | None:
    """Windows side by side, the last maybe smaller: each second size is the first over the stride, rounded up."""
    before, after = next(iter(sizes))
    stride = -(-before // max(after, 1))
    return (stride, stride, 0) if all(-(-a // stride) == b for a, b in sizes) else None


def _pool(sizes: set[tuple[int, int]]) -> Pool | None:
    """Average pooling along one dimension that makes each second size of the first; None: there is none."""
    tried: list[Pool] = []
    for before, after in sizes:
        for stride in sorted({max(before // max(after, 1), 1), -(-before // max(after, 1))}, reverse=True):
            half = stride // 2
            tried += [(stride, stride, 0), (2 * half + 1, stride, half), (before - (after - 1) * stride, stride, 0)]
    for kernel, stride, padding in tried:
        if kernel >= 1 and all((a + 2 * padding - kernel) // stride + 1 == b for a, b in sizes):
            return kernel, stride, padding
    return None
