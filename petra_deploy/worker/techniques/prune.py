"""Structured pruning: remove whole channels, so that every runtime gets smaller, dense layers.

Channels that must go together (a convolution's outputs, its BatchNorm, the inputs of all readers,
the other branches of a residual sum) form a group; each group loses the share of its channels that
`ratios` asks for, the least important first. Widths are rounded to what the target likes.
Source: DepGraph, arXiv 2301.12900; torch-pruning finds the groups (worker/model/channels.py).

    Step(technique="prune", options={"ratios": {"conv1": 0.75}, "round_to": 16})
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import channels, stages, surgery
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.factored import outer
from petra_deploy.worker.model.importance import Importance, channel_scores, rounded_width, strongest
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.surgery import Coupling
from petra_deploy.worker.model.trial import Tensors, Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "channels"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.98)]]  # group name -> share of its channels to remove
    round_to: Annotated[int, Ge(1)] = 16  # new widths are multiples of this; narrow layers: of a part of it
    importance: Importance = "magnitude_l2"


def groups(look: Look) -> Found:
    """The groups of channels that hold when tried."""
    found = channels.couplings(look.model, look.trial)
    return Found(tuple(look.group(g.name, KIND, g.width, g.makers) for g in found.groups), found.refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one group has lost half of its channels."""
    couplings = {found.name: found for found in channels.propose(model, example).groups}

    def halved(group: Group) -> nn.Module:
        small = surgery.twin(model)
        scores = channel_scores(model, couplings[group.name], "magnitude_l2", 0)
        surgery.keep(small, {couplings[group.name]: strongest(scores, math.ceil(group.width / 2))})
        return small

    return halved


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind("channels"):
        return ()
    reasons = [why for name, why in layout.refused.items() if name.startswith("channels/")]
    return (f"no channels can be removed: {reasons[0]}" if reasons else "the model has no channels to remove",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"ratios": Knob.real(0.0, 0.95, per="channels", ladder=(0.5, 0.75, 0.87, 0.92), strength=True)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": target.channel_step}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with the weakest channels of each named group removed.

    A group inside a block that was dropped before is passed over. Raises Problem("unsupported") for
    a name that is no group of this model, and where the groups do not hold when tried.
    """
    example = example_of(tools.calibration, tools.signature)
    small = surgery.twin(model)
    proposed = channels.propose(model, example)
    if "*" in proposed.refused:
        raise Problem("unsupported", proposed.refused["*"])
    ratios = _assign(model, proposed, options.ratios, tools, example)
    kept = {}
    for group, ratio in ratios.items():
        width = rounded_width(group.width, ratio, options.round_to)
        if width < group.width:
            scores = channel_scores(model, group, options.importance, tools.seed)
            kept[group] = strongest(scores, width)
    if kept:
        trial = Trial(model, example)
        if reason := channels.mixes(list(kept), trial):
            raise Problem("unsupported", f"of {', '.join(g.name for g in kept)}: {reason}")
        surgery.keep(small, kept)
        if reason := trial.breaks(small):
            raise Problem("unsupported", f"pruning {', '.join(g.name for g in kept)}: {reason}")
    small = surgery.own(small)
    return Applied(
        small,
        facts={
            "widths": {g.name: [g.width, len(kept[g]) if g in kept else g.width] for g in ratios},
            "parameters": [surgery.size(model), surgery.size(small)],
            "gone": sorted(name for name in options.ratios if gone(model, name)),
        },
    )


def _assign(
    model: nn.Module, proposed: channels.Couplings, ratios: dict[str, float], tools: Tools, example: Tensors
) -> dict[Coupling, float]:
    """The ratio of each group. Of several names for one group (blocks between them were dropped) the mildest."""
    found: dict[Coupling, float] = {}

    def give(names: Sequence[str], ratio: float) -> bool:
        groups = [g for g in proposed.groups if g.name in names] or [
            g for g in proposed.groups if set(g.makers) & set(names)
        ]
        for group in groups:
            found[group] = min(found.get(group, 1.0), ratio)
        return bool(groups)

    lost = []
    for name, ratio in ratios.items():
        if gone(model, name):
            lost.append(name)
        elif not give([outer(model, name)], ratio):
            raise Problem(
                "unsupported",
                f"{name!r} names no group of channels that can be pruned"
                + (f": {why}" if (why := proposed.refused.get(name)) else ""),
                f"groups: {', '.join(g.name for g in proposed.groups)}",
            )
    unnamed = [g for g in proposed.groups if g not in found]
    if lost and unnamed:  # a group may live on though the layer that it was named after is gone
        original = channels.propose(tools.teacher(), example)
        for group in original.groups:
            if group.name in lost:
                others = {stages.heir(model, m) if gone(model, m) else outer(model, m) for m in group.makers}
                for heir in unnamed:
                    if set(heir.makers) & others:
                        found[heir] = min(found.get(heir, 1.0), ratios[group.name])
    return found
