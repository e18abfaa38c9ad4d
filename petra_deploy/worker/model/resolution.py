"""Fewer pixels, samples or steps: pool an input, or what a layer of a sequence model is called with.

    small = pooled_input(model, 0, (2, 3), 2)            # the input's height and width, averaged two by two
    steps(model, "rnn", trial)                           # how a layer is called with a sequence
    shorten(model, "encoder", found, 2, back=True)       # in place: half of the steps go in, and come out doubled

The pooling is part of the model, so the inputs stay as the user gives them. Layers keep their names: what they are
called with is changed by hooks, which are copied, kept and exported with them. A sequence is averaged, and what else
has its length (masks, positions) loses the same steps; windows at the end may be partial.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from petra_deploy.worker.model import adapter, trial
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.model.blocks import Source, first_of
from petra_deploy.worker.model.passes import watching
from petra_deploy.worker.model.trial import Trial

AXES = {2: ((1,),), 3: ((2,), (1,)), 4: ((2, 3), (1, 2)), 5: ((2, 3, 4), (3, 4))}  # dimensions -> maps that are tried
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class Pooling(nn.Module):
    """Average pooling along `axes` of a tensor, by `factor`; windows at the end may be partial."""

    def __init__(self, axes: tuple[int, ...], factor: int) -> None:
        super().__init__()
        self.axes, self.factor = axes, factor
        window = (1,) * (axes == (3, 4)) + (factor,) * len(axes)  # of a film: along the map, not between channels
        self.pool = cast(Any, _POOLS[len(window) - 1])(window, window, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return cast(Tensor, self.pool(x.unsqueeze(1))).squeeze(1)
        if self.axes[0] in (0, 1):  # the channels come last
            behind = tuple(a for a in range(x.dim()) if a not in self.axes)
            order = (*behind, *self.axes)
            back = tuple(order.index(a) for a in range(x.dim()))
            return cast(Tensor, self.pool(x.permute(order))).permute(back)
        return cast(Tensor, self.pool(x))


class Downscaled(Adapter):
    """An Adapter that pools some of its inputs first."""

    def __init__(self, model: Adapter, poolings: Mapping[int, nn.Module]) -> None:
        super().__init__(model.inner, model.names, model.call)
        before = dict(model.poolings.items()) if isinstance(model, Downscaled) else {}
        self.poolings: nn.ModuleDict = nn.ModuleDict(before)
        for index, pooling in poolings.items():
            earlier = [before[str(index)]] if str(index) in before else []
            self.poolings[str(index)] = nn.Sequential(*earlier, pooling)

    def named_outputs(self, *tensors: Tensor) -> list[tuple[str, Tensor]]:
        pools = dict(self.poolings.items())
        return super().named_outputs(*(pools[str(i)](t) if str(i) in pools else t for i, t in enumerate(tensors)))


def stem(model: nn.Module, index: int, feeds: trial.Tensors) -> str | None:
    """The one convolution that reads the input itself: its stride can grow in place of a pooling."""
    convs = [name for name, m in adapter.submodules(model) if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    with watching(model, convs) as seen:
        trial.outputs(model, feeds)
    start = feeds[index].data_ptr()
    found = [name for name, calls in seen.items() for (args, _), _ in calls if args and args[0].data_ptr() == start]
    return found[0] if len(found) == 1 and len(seen[found[0]]) == 1 else None


def stride(model: nn.Module, name: str, factor: int) -> None:
    """Change `model` in place: the convolution takes steps `factor` times as long."""
    conv = cast(Any, adapter.submodule(model, name))
    conv.stride = tuple(step * factor for step in conv.stride)
    if isinstance(conv.padding, str) and conv.padding == "same":  # torch refuses it beside a stride
        pads = [(d * (k - 1)) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        if any(pad % 2 for pad in pads):
            raise ValueError("an even window with padding 'same' cannot stride")
        conv.padding = tuple(pad // 2 for pad in pads)


@dataclass(frozen=True)
class Steps:
    """A call with a sequence: which argument it is, along which axis its steps lie, and what else has them."""

    source: Source
    axis: int
    length: int
    others: tuple[tuple[Source, tuple[int, ...]], ...] = ()  # argument -> axes of the same length


@dataclass
class Shorten:
    """A hook before a call: pools the sequence and takes the same steps of what else has its length."""

    steps: Steps
    factor: int
    back: bool  # the output has all the steps again
    before: list[Any] = field(default_factory=list)  # lengths of calls that are under way

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        given: dict[Source, Any] = {**dict(enumerate(args)), **kwargs}
        x = given[self.steps.source]
        if self.back:
            self.before.append(x.shape[self.steps.axis])
        given[self.steps.source] = _averaged(x, self.steps.axis, self.factor)
        for source, axes in self.steps.others:
            for axis in axes:
                given[source] = given[source][(slice(None),) * axis + (slice(None, None, self.factor),)]
        return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}

    def lengthen(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        """A hook after it: every step of the output as often as steps went into it."""
        y = first_of(result).repeat_interleave(self.factor, self.steps.axis)
        y = y.narrow(self.steps.axis, 0, self.before.pop())
        return (y, *result[1:]) if isinstance(result, tuple) else y


def _averaged(x: Tensor, axis: int, factor: int) -> Tensor:
    x = x.movedim(axis, -1)
    shape = x.shape
    x = nn.functional.avg_pool1d(
        x.reshape(-1, shape[-2], shape[-1]), factor, factor, ceil_mode=True, count_include_pad=False
    )
    return x.reshape(*shape[:-1], x.shape[-1]).movedim(-1, axis)


def steps(model: nn.Module, name: str, tried: Trial) -> Steps | str:
    """How the layer is called with a sequence (rows, steps, features), or why that cannot be told."""
    with watching(model, [name]) as seen:
        for feeds in tried.feeds:
            trial.outputs(model, feeds)
    calls = [({**dict(enumerate(args)), **kwargs}, result) for (args, kwargs), result in seen.get(name, [])]
    if len(calls) != len(tried.feeds):
        return "it is not called once"
    first = calls[0][0]
    source = next((s for s, v in first.items() if _is_sequence(v)), None)
    if source is None:
        return "it is called with no sequence of features"
    rows = [len(feeds[0]) for feeds in tried.feeds]
    batched = [a for a in (0, 1) if all(c[source].shape[a] == n for (c, _), n in zip(calls, rows, strict=True))]
    axis = 1 if batched[:1] == [0] else 0
    length = first[source].shape[axis]
    others = []
    for other, value in first.items():
        if other != source and isinstance(value, Tensor):
            same = tuple(a for a in range(value.dim()) if all(c[other].shape[a] == length for c, _ in calls))
            if same and not (len(tried.feeds) == 1 and rows[0] == length):
                others.append((other, same))
    return Steps(source, axis, length, tuple(others))


def lengths(model: nn.Module, name: str, feeds: trial.Tensors) -> list[tuple[int, ...]]:
    """The shapes of all tensors that the layer, or the parts of a container, are called with."""
    parts = [n for n, _ in adapter.submodules(model) if f"{n}.".startswith(f"{name}.")]
    with watching(model, parts) as seen:
        trial.outputs(model, feeds)
    calls = [call for made in seen.values() for call, _ in made]
    return [tuple(v.shape) for args, kwargs in calls for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]


def shorten(model: nn.Module, name: str, found: Steps, factor: int, *, back: bool) -> None:
    """Change `model` in place: the layer works on means of `factor` steps; `back`: its output has all steps again."""
    layer, hook = adapter.submodule(model, name), Shorten(found, factor, back)
    layer.register_forward_pre_hook(hook, with_kwargs=True)
    if back:
        layer.register_forward_hook(hook.lengthen, with_kwargs=True)


def depends(tried: Trial, length: int) -> bool:
    """Whether the outputs' shapes follow the number of steps: half as many are tried, where the model takes them."""
    feeds = tried.feeds[0]
    axes = [next((a for a in range(1, t.dim()) if t.shape[a] == length), None) for t in feeds]
    shorter = tuple(t if a is None else t.narrow(a, 0, (length + 1) // 2) for t, a in zip(feeds, axes, strict=True))
    now = trial.shapes(trial.outputs(tried.model, feeds))
    if any(axis is not None for axis in axes):
        try:
            return trial.shapes(trial.outputs(tried.model, shorter)) != now
        except Exception:  # its code has the length written into it
            pass
    return any(length in shape[1:] for shape in now)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3
