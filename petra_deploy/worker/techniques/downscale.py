"""Work on fewer pixels, samples or steps, where the outputs do not show it: the map is pooled before the layers.

For an image or a series the input is averaged (or its first convolution strides farther); for a sequence that only
becomes one inside (embedded codes), the steps that a recurrent layer or a stack of encoder layers is called with. Half
of each side is a quarter of an image's work. The artifact's inputs stay the user's: the pooling is part of the graph.
Nothing is offered where an output's shape follows the size: segmentation, token classification. Source: input
resolution as a scale of its own, EfficientNet (arXiv 1905.11946); pooled steps, Funnel-Transformer (arXiv 2006.03236).

    Step(technique="downscale", options={"ratios": {"image": 0.5}, "where": "input"})
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, resolution, surgery
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.model.blocks import CONTAINERS, PassThrough, gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors, Trial
from petra_deploy.worker.quiet import cause

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "resolution"
FACTORS = (4, 3, 2)
Where = Literal["input", "stride"]


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.75)]]  # input or layer -> share of each side (or of the steps) to go
    where: Where = "input"  # for inputs: pool them, or let the first convolution stride
    most: dict[str, Annotated[int, Ge(1)]] = field(default_factory=dict)  # the largest factor that works


def groups(look: Look) -> Found:
    """The inputs and layers whose map can be pooled; a group's width is the largest factor that works."""
    names = [spec.name for spec in look.signature.inputs]
    found: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name in (*names, *(layer for layer in _sequential(look.model) if layer not in names)):
        reason: str | None = "it gets fewer steps when the input has fewer"
        for factor in () if name not in names and _follows(look, found, name) else FACTORS:
            reason = _tried(look.model, {**found, name: factor}, "input", look.trial, names)
            if reason is None:
                found[name] = factor
                break
        if reason is not None:
            refused[name] = reason
    macs = sum(look.macs.values())
    made = [
        Group(name=name, kind=KIND, width=most, parameters=0, macs=macs)
        if name in names
        else look.group(name, KIND, most, [name])
        for name, most in found.items()
    ]
    return Found(tuple(made), refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one map has half of each side."""
    trial = Trial(model, example)

    def halved(group: Group) -> nn.Module:
        changed = _changed(model, group.name, 2, "input", trial, list(getattr(model, "names", ())))
        if isinstance(changed, str):
            raise LookupError(changed)
        return changed

    return halved


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind(KIND):
        return ()
    reasons = layout.refusals(KIND)
    return (f"no map can be pooled ({reasons[0]})" if reasons else "the model has no map that could be pooled",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    inputs = {spec.name for spec in layout.signature.inputs}
    strides = any(name in layout.operators for name in ("Conv1d", "Conv2d", "Conv3d"))
    found = {"ratios": Knob.real(0.0, 0.75, per=KIND, strength=True)}
    if strides and any(group.name in inputs for group in layout.of_kind(KIND)):
        found["where"] = Knob.choice("input", "stride")
    return found


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"most": {group.name: group.width for group in layout.of_kind(KIND)}}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` that works on smaller maps: sides shorter by 2, 3 or 4, whichever is nearest.

    Facts: `factors` {input or layer: factor}, `kept` {name: why it stayed}. Raises Problem("unsupported") for a name
    that is no input and no layer called with a sequence, and where the model does not run so, or gives other shapes.
    """
    names = [spec.name for spec in tools.signature.inputs]
    given = Trial(model, example_of(tools.calibration, tools.signature))
    factors: dict[str, int] = {}
    kept: dict[str, str] = {}
    for name, ratio in options.ratios.items():
        factor = min(min((1, *FACTORS), key=lambda f: abs(f - 1 / (1 - ratio))), options.most.get(name, FACTORS[0]))
        if gone(model, name) or _empty(model, name):
            kept[name] = "it is gone"
        elif factor == 1:
            kept[name] = "less than half of it was to go, which no pooling does"
        else:
            factors[name] = factor
    small, done = surgery.twin(model), dict[str, int]()
    for name, factor in factors.items():
        changed = _changed(small, name, factor, options.where, given, names)
        if not isinstance(changed, str):
            small, done[name] = changed, factor
        elif options.where == "stride" and name in names:
            kept[name] = f"the first convolution cannot stride farther: {changed}"
        else:
            raise Problem("unsupported", f"{name!r} cannot be made smaller by {factor}: {changed}")
    small = surgery.own(small)
    return Applied(small, facts={"factors": done, "where": options.where, "kept": kept})


def _follows(look: Look, found: dict[str, int], name: str) -> bool:
    """Whether a layer is already called with fewer steps where the inputs found so far are pooled."""
    names = [spec.name for spec in look.signature.inputs]
    model = look.model
    for pooled in (n for n in found if n in names):
        changed = _changed(model, pooled, 2, "input", look.trial, names)
        model = model if isinstance(changed, str) else changed
    before, now = (resolution.lengths(each, name, look.trial.feeds[0]) for each in (look.model, model))
    return before != now


def _tried(model: nn.Module, factors: dict[str, int], where: Where, trial: Trial, names: list[str]) -> str | None:
    for name, factor in factors.items():
        changed = _changed(model, name, factor, where, trial, names)
        if isinstance(changed, str):
            return changed
        model = changed
    return None


def _changed(model: nn.Module, name: str, factor: int, where: Where, trial: Trial, names: list[str]) -> nn.Module | str:
    """A copy with the map of `name` smaller by `factor`, or why not; `trial` is of the model as it was."""
    reasons: list[str] = []
    broken: list[str] = []  # these say more
    try:
        for small in _ways(model, name, factor, where, trial, names):
            if isinstance(small, str):
                reasons.append(small)
            elif (why := trial.breaks(small)) is None:
                return small
            else:
                broken.append(f"its map made smaller, {why}")
    except (AttributeError, ValueError) as error:
        return cause(error)
    return (broken or reasons[::-1])[0]


def _ways(
    model: nn.Module, name: str, factor: int, where: Where, trial: Trial, names: list[str]
) -> Iterator[nn.Module | str]:
    small = surgery.twin(model)
    if name not in names:
        yield from _in_layer(small, name, factor, trial)
        return
    index = names.index(name)
    x = trial.feeds[0][index]
    if where == "stride":
        conv = resolution.stem(model, index, trial.feeds[0])
        if conv is None:
            yield "no convolution reads this input before all else"
            return
        resolution.stride(small, conv, factor)
        yield small
        return
    if not x.is_floating_point():
        yield "its values are codes, of which there is no average"
        return
    yield "it has no map"
    base = small if isinstance(small, Adapter) else Adapter(small, names)
    for axes in resolution.AXES.get(x.dim(), ()):
        if min(x.shape[axis] for axis in axes) < 2 * factor:
            yield f"its map is only {min(x.shape[axis] for axis in axes)} wide"
        else:
            yield resolution.Downscaled(base, {index: resolution.Pooling(axes, factor)}).eval()


def _in_layer(small: nn.Module, name: str, factor: int, trial: Trial) -> Iterator[nn.Module | str]:
    """Of a recurrent layer also without its steps given back: then what comes after it works on fewer, too."""
    layer = adapter.submodule(small, name)
    parts = [f"{name}.{child}" for child, m in layer.named_children() if not isinstance(m, PassThrough)]
    parts = parts if _stack(layer) else [name]
    found = [resolution.steps(trial.model, part, trial) for part in parts]
    if reason := next((f for f in found if isinstance(f, str)), None):
        yield reason
        return
    calls = [f for f in found if isinstance(f, resolution.Steps)]
    if min(call.length for call in calls) < 2 * factor:
        yield f"it is called with {min(call.length for call in calls)} steps only"
        return
    for back in (False, True) if isinstance(layer, nn.RNNBase) else (True,):
        if back and any(resolution.depends(trial, call.length) for call in calls):
            yield "the shape of an output follows the number of steps"
            continue
        changed = surgery.twin(small)
        for part, call in zip(parts, calls, strict=True):
            resolution.shorten(changed, part, call, factor, back=back)
        yield changed


def _empty(model: nn.Module, name: str) -> bool:
    """Whether all blocks of a container are gone."""
    found = dict(adapter.submodules(model)).get(name)
    return found is not None and _stack(found) and all(isinstance(m, PassThrough) for m in found.children())


def _stack(layer: nn.Module) -> bool:
    return isinstance(layer, CONTAINERS)


def _sequential(model: nn.Module) -> Iterator[str]:
    """Recurrent layers, torch's encoders, and containers of blocks of one class that are not in one of these."""
    taken: list[str] = []
    for name, module in adapter.submodules(model):
        if any(name.startswith(f"{outer}.") for outer in taken):
            continue
        kinds = {type(m) for m in module.children()}
        several = _stack(module) and len(kinds) == 1 and all(next(m.children(), None) for m in module.children())
        if several or isinstance(module, nn.RNNBase | nn.TransformerEncoder):
            taken.append(name)
            yield name
