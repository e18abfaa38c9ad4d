"""Remove whole attention heads: q, k and v lose their rows, the output projection its columns.

A head costs two matrix products over all pairs of steps beside its projections, and many say what others
say. Which heads a module has is found by trying (worker/model/attention/heads.py); an nn.MultiheadAttention
is first rewritten, exactly, to plain Linear layers. The width around the heads stays: that is prune's.
Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650.

    Step(technique="prune_heads", options={"ratios": {"encoder.layers.0.self_attn": 0.5}})
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
from petra_deploy.worker.model import channels, surgery
from petra_deploy.worker.model.attention.heads import Heads, keep_heads
from petra_deploy.worker.model.attention.loose import Loose, look_closer, loosened
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.importance import Importance, channel_scores, rounded_width, strongest
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors, Trial
from petra_deploy.worker.training.saliency import saliency

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "heads"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.98)]]  # attention module -> share of its heads to remove
    importance: Importance = "magnitude_l2"


def groups(look: Look) -> Found:
    """The attention modules that hold with half of their heads, alone and all together."""
    look, loose = look_closer(look)
    refused = dict(loose.refused)
    sound: list[Heads] = []
    if _broken(loose.heads, loose) is None:  # most often; and one test of them all is one pass
        sound += loose.heads
    for heads in () if sound else loose.heads:
        reason = _broken((*sound, heads), loose)
        if reason is None:
            sound.append(heads)
        else:
            refused[heads.name] = reason
    found = (look.group(h.name, KIND, h.coupling.width, {p.layer for p in h.coupling.places}) for h in sound)
    return Found(tuple(found), refused)


def _broken(heads: Sequence[Heads], loose: Loose) -> str | None:
    """What fails when every second head is removed, or when heads change places; None where nothing does."""
    small = surgery.twin(loose.model)
    keep_heads(small, {h: range(0, h.coupling.width, 2) for h in heads})
    return loose.trial.breaks(small) or (channels.mixes([h.coupling for h in heads], loose.trial) if heads else None)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one attention module has lost half of its heads."""
    loose = loosened(model, Trial(model, example))
    known = {heads.name: heads for heads in loose.heads}

    def halved(group: Group) -> nn.Module:
        small = surgery.twin(loose.model)
        scores = channel_scores(loose.model, known[group.name].coupling, "magnitude_l2", 0)
        keep_heads(small, {known[group.name]: strongest(scores, math.ceil(group.width / 2))})
        return small

    return halved


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind(KIND):
        return ()
    reasons = layout.refusals(KIND)
    return (f"no heads can be removed ({reasons[0]})" if reasons else "the model has no attention of several heads",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"ratios": Knob.real(0.0, 0.95, per=KIND, strength=True)}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` whose attention modules keep their most important heads, at least one each.

    A module inside a block that was dropped before is passed over. Raises Problem("unsupported") for a
    name that is no attention module whose heads can be removed, and where the model then fails.
    """
    example = example_of(tools.calibration, tools.signature)
    loose = loosened(model, Trial(model, example))
    known = {heads.name: heads for heads in loose.heads}
    lost = sorted(name for name in options.ratios if gone(model, name))
    if unknown := [name for name in options.ratios if name not in known and name not in lost]:
        why = loose.refused.get(unknown[0])
        raise Problem(
            "unsupported",
            f"{unknown[0]!r} has no heads that can be removed" + (f": {why}" if why else ""),
            f"attention modules: {', '.join(known)}" if known else "",
        )
    widths = {name: [known[name].coupling.width, rounded_width(known[name].coupling.width, ratio, 1)]
              for name, ratio in options.ratios.items() if name in known}  # fmt: skip
    weights = saliency(loose.model, options.importance, tools)
    kept = {
        known[name]: strongest(channel_scores(weights, known[name].coupling, options.importance, tools.seed), after)
        for name, (before, after) in widths.items()
        if after < before
    }
    small = surgery.twin(loose.model if kept else model)
    keep_heads(small, kept)
    if kept and (reason := loose.trial.breaks(small)):
        raise Problem("unsupported", f"with fewer heads in {', '.join(heads.name for heads in kept)} {reason}")
    small = surgery.own(small)
    return Applied(
        small,
        facts={
            "heads": widths,
            "kept": {heads.name: stay for heads, stay in kept.items()},
            "parameters": [surgery.size(model), surgery.size(small)],
            "gone": lost,
        },
    )
