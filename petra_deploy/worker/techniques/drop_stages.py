"""Remove whole stages, or the blocks that change channels and stride: the smallest stand-in keeps the shapes.

A stage's stand-in is average pooling for its stride and, where the number of channels changes, either a 1x1
convolution (Linear where channels come last) fitted by least squares to what the stage gave on calibration rows
("mix"), or channels of zeros ("pad"). Fewer layers are what the largest factors are made of (docs/measurements.md).
Source: shortcuts of kind A and B, He and others, "Deep residual learning" (arXiv 1512.03385), section 3.3.

    Step(technique="drop_stages", options={"stages": ["stages.1", "stages.3.0"], "channels": "mix"})
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, stages, surgery, trial
from petra_deploy.worker.model.blocks import first_of, gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.passes import batches, watching
from petra_deploy.worker.model.stages import Channels, Shortcut, Stage
from petra_deploy.worker.model.trial import Tensors, Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "stage"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    stages: tuple[str, ...]  # names of stages, as named_modules() gives them
    channels: Channels = "mix"  # how the number of channels is kept


def groups(look: Look) -> Found:
    """The stages that the model runs without."""
    found = stages.removable(look.model, look.trial, look.signature)
    return Found(tuple(look.group(name, KIND, 1, [name]) for name in found.names), found.refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` without one stage, its stand-in fitted on the example."""

    def without(group: Group) -> nn.Module:
        small = surgery.twin(model)
        stage = stages.look(model, group.name, [example])
        if isinstance(stage, str):
            raise LookupError(stage)
        _stand_in(model, small, stage, "mix", [example])
        return small

    return without


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    return () if layout.of_kind(KIND) else ("the model has no stages that could go one by one",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"stages": Knob.subset(KIND)}  # "pad" is left to people: pruning cannot narrow channels of zeros


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with a stand-in for each named stage.

    A stage inside another that is named, or in a block that is gone, is passed over. Facts: `dropped` {stage: {"pool":
    [kernel, stride, padding] a dimension, "channels": [before, after], "fit": share of the output's variance that the
    stand-in explains on calibration rows}}. Raises Problem("unsupported") for a name that is no stage, and where the
    model does not run without the stages.
    """
    known = {name for name, _ in adapter.submodules(model)}
    present = [name for name in options.stages if not gone(model, name)]
    if missing := [name for name in present if name not in known]:
        raise Problem("unsupported", f"the model has no stage {missing[0]!r}")
    given = Trial(model, example_of(tools.calibration, tools.signature))
    rows = list(batches(tools.calibration, tools.signature))
    small = surgery.twin(model)
    dropped: dict[str, object] = {}
    taken = stages.outermost(present)
    for name in [n for n, _ in adapter.submodules(model) if n in taken]:
        stage = stages.look(model, name, given.feeds, tools.signature)
        if isinstance(stage, str):
            raise Problem("unsupported", f"{name!r} cannot be replaced: {stage}")
        explained = _stand_in(model, small, stage, options.channels, rows)
        dropped[name] = {"pool": [list(p) for p in stage.pools], "channels": list(stage.channels), "fit": explained}
    if dropped and (reason := given.breaks(small)):
        raise Problem("unsupported", f"without {', '.join(dropped)} {reason}")
    small = surgery.own(small)
    facts: dict[str, object] = {
        "dropped": dropped,
        "passed_over": sorted(set(options.stages) - set(dropped)),
        "parameters": [surgery.size(model), surgery.size(small)],
    }
    return Applied(small, facts=facts)


def _stand_in(
    model: nn.Module, small: nn.Module, stage: Stage, channels: Channels, rows: list[Tensors]
) -> float | None:
    """Put a Shortcut where the stage is in `small`; the share of variance it explains, where it was fitted.

    It learns to make what the stage gives in `model` of what it gets in `small`, where earlier ones may be gone.
    """
    through = stages.like(model, Shortcut(stage, channels))
    explained = None
    if through.mix is not None:
        gram: Any = 0
        cross: Any = 0
        square = 0.0
        for batch in rows:
            with watching(model, [stage.name]) as before:
                trial.outputs(model, batch)
            with watching(small, [stage.name]) as now:
                trial.outputs(small, batch)
            for ((args, kwargs), _), (_, result) in zip(now[stage.name], before[stage.name], strict=True):
                x = args[stage.source] if isinstance(stage.source, int) else kwargs[stage.source]
                y = first_of(result)
                g, c = stages.sums(through, x, y)
                gram, cross = gram + g, cross + c
                square += float(y.double().square().sum())
        stages.fit(through, gram, cross)
        explained = stages.explained(through, gram, cross, square)
    adapter.replace(small, stage.name, through)
    return explained
