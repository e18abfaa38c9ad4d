"""Structured pruning: remove whole channels, so that every runtime gets smaller, dense layers.

Channels that must go together (a convolution's outputs, its BatchNorm, the inputs of all readers,
the other branches of a residual sum) form a group; each group loses the share of its channels that
`ratios` asks for, the least important first. Widths are rounded to what the target likes. In a transformer
the residual stream is one group, through embeddings, norms and projections; attention is made to allow it
by exact rewrites (worker/model/attention). In several `rounds` the widths shrink by equal factors, with a
short recovery training between and the importances taken anew.
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
from petra_deploy.worker.model.attention.loose import look_closer, loosened
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.factored import outer
from petra_deploy.worker.model.importance import Importance, channel_scores, rounded_width, strongest
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.surgery import Coupling
from petra_deploy.worker.model.trial import Tensors, Trial
from petra_deploy.worker.training.recovery import Recipe, train
from petra_deploy.worker.training.saliency import saliency

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "channels"
TRAINING_KNOBS = ("rounds",)  # Inspect leaves them out where there are no training rows


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.98)]]  # group name -> share of its channels to remove
    round_to: Annotated[int, Ge(1)] = 16  # new widths are multiples of this; narrow layers: of a part of it
    importance: Importance = "magnitude_l2"
    rounds: Annotated[int, Ge(1), Le(10)] = 1  # more need training rows
    epochs_between: Annotated[float, Ge(0)] = 0.5  # of recovery training, between two rounds


def groups(look: Look) -> Found:
    """The groups of channels that hold when tried. What lies inside of heads is prune_heads's."""
    look, loose = look_closer(look)
    inside = {maker for heads in loose.heads for maker in heads.coupling.makers}
    found = channels.couplings(look.model, look.trial, elsewhere=inside)
    refused = {name: why for name, why in found.refused.items() if name not in inside}
    return Found(tuple(look.group(g.name, KIND, g.width, g.makers) for g in found.groups), refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one group has lost half of its channels."""
    model = loosened(model, Trial(model, example)).model
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
    ratios = Knob.real(0.0, 0.98, per="channels", ladder=(0.5, 0.75, 0.87, 0.92), strength=True)
    if all(not spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.outputs):
        return {"ratios": ratios}  # no gradient passes
    return {
        "ratios": ratios,
        "importance": Knob.choice("magnitude_l2", "taylor"),
        "rounds": Knob.integer(1, 3),
    }


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": target.channel_step}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with the weakest channels of each named group removed.

    A group inside a block that was dropped before is passed over, and one that the original has but that
    cannot be cut any more (all layers that made its channels are gone, or they are outputs now). Raises
    Problem("unsupported") for a name that is no group, where the groups do not hold when tried, and for
    several rounds without training rows; "diverged" where the training between them does.
    """
    example = example_of(tools.calibration, tools.signature)
    if options.rounds > 1 and (tools.train is None or not len(tools.train)):
        raise Problem("unsupported", "pruning in several rounds trains between them, and there are no training rows",
                      'give --data with at least a few hundred rows, or "rounds": 1')  # fmt: skip
    loose = loosened(model, Trial(model, example))
    proposed = channels.propose(loose.model, example)
    if (why := proposed.refused.get("*")) is not None:
        if "*" in channels.propose(tools.teacher(), example).refused:
            raise Problem("unsupported", why)
        return Applied(
            surgery.own(surgery.twin(model)), facts={"widths": {}, "gone": sorted(options.ratios), "why": why}
        )
    ratios, lost = _assign(loose.model, proposed, options.ratios, tools, example)
    final = {group.name: rounded_width(group.width, ratio, options.round_to) for group, ratio in ratios.items()}
    small, trial = loose.model, loose.trial
    losses: list[float] = []
    current = list(ratios)
    for index in range(options.rounds):
        done = (index + 1) / options.rounds
        widths = {g.name: max(final[g.name], rounded_width(g.width, 1 - (final[g.name] / g.width) ** done,
                                                          options.round_to)) for g in ratios}  # fmt: skip
        before = small
        small = _pruned(small, trial, current, widths, options, tools)
        if small is not before and index + 1 < options.rounds:
            small = surgery.own(small)
            trained = train(small, Recipe(epochs=options.epochs_between), tools)
            losses += trained.losses
            trial = Trial(small, example)
            found = {group.name: group for group in channels.propose(small, example).groups}
            current = [found[group.name] for group in current if group.name in found]
    if small is loose.model:
        small = model
    small = surgery.own(surgery.twin(small))
    left = {group.name for group in current}  # a group may end between two rounds
    return Applied(
        small,
        facts={
            "widths": {g.name: [g.width, final[g.name]] for g in ratios if g.name in left},
            "parameters": [surgery.size(model), surgery.size(small)],
            "gone": sorted([*lost, *(g.name for g in ratios if g.name not in left)]),
            "losses_between": [float(f"{loss:.4g}") for loss in losses],
        },
    )


def _pruned(
    model: nn.Module, trial: Trial, groups: Sequence[Coupling], widths: dict[str, int], options: Options, tools: Tools
) -> nn.Module:
    """A copy of `model` with at most so many channels in each group; `model` itself where that is no change."""
    narrower = [group for group in groups if widths[group.name] < group.width]
    if not narrower:
        return model
    names = ", ".join(group.name for group in narrower)
    if reason := channels.mixes(narrower, trial):
        raise Problem("unsupported", f"of {names}: {reason}")
    weights = saliency(model, options.importance, tools)
    scores = {group: channel_scores(weights, group, options.importance, tools.seed) for group in narrower}
    kept = {group: strongest(score, widths[group.name]) for group, score in scores.items()}
    small = surgery.twin(model)
    surgery.keep(small, kept)
    if reason := trial.breaks(small):  # perhaps numbers beside the weights must follow
        found = {group: channels.settled(group, trial) for group in kept}
        small = surgery.twin(model)
        surgery.keep(small, {g if isinstance(g, Coupling) else group: kept[group] for group, g in found.items()})
        if trial.breaks(small):
            raise Problem("unsupported", f"pruning {names}: {reason}")
    return small


def _assign(
    model: nn.Module, proposed: channels.Couplings, ratios: dict[str, float], tools: Tools, example: Tensors
) -> tuple[dict[Coupling, float], list[str]]:
    """The ratio of each group, and the names of those that are passed over.

    Of several names for one group (blocks between them were dropped) the mildest counts.
    """
    found: dict[Coupling, float] = {}

    def give(names: Sequence[str], ratio: float) -> bool:
        groups = [g for g in proposed.groups if g.name in names] or [
            g for g in proposed.groups if set(g.makers) & set(names)
        ]
        for group in groups:
            found[group] = min(found.get(group, 1.0), ratio)
        return bool(groups)

    lost = sorted(n for n, ratio in ratios.items() if gone(model, n) or not give([outer(model, n)], ratio))
    if not lost:
        return found, lost
    teacher = tools.teacher()
    original = channels.propose(loosened(teacher, Trial(teacher, example)).model, example).groups
    for name in (n for n in lost if not gone(model, n)):
        if not any(name in (group.name, *group.makers) for group in original):
            raise Problem(
                "unsupported",
                f"{name!r} names no group of channels that can be pruned"
                + (f": {why}" if (why := proposed.refused.get(name)) else ""),
                f"groups: {', '.join(g.name for g in proposed.groups)}",
            )
    unnamed = [g for g in proposed.groups if g not in found]
    for group in (g for g in original if g.name in lost and unnamed):  # it may live on though its first layer is gone
        others = {stages.heir(model, m) if gone(model, m) else outer(model, m) for m in group.makers}
        for heir in unnamed:
            if set(heir.makers) & others:
                found[heir] = min(found.get(heir, 1.0), ratios[group.name])
    return found, lost
