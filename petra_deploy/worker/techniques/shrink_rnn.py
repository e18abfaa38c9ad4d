"""Remove hidden units of LSTM, GRU and RNN layers: the time steps stay, each becomes cheaper.

Every layer and direction keeps its own most important units, equally many; the layers that read
them lose the matching columns. Fewer units, trained long, beat every other way to speed up a
recurrent network (docs/measurements.md). Who reads a unit is found by trying: worker/model/readers.py. Cells
(nn.LSTMCell and the like) in a loop of the user's own are cut likewise, an LSTM with projections inside.

    Step(technique="shrink_rnn", options={"ratios": {"rnn": 0.75}, "round_to": 8})
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import recurrent, surgery
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.importance import rounded_width, strongest_units
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.recurrent import Kept, Recurrence
from petra_deploy.worker.model.trial import Tensors, Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "units"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.98)]]  # recurrent layer -> share of its units to remove
    round_to: Annotated[int, Ge(1)] = 8  # new sizes are multiples of this


def groups(look: Look) -> Found:
    """The recurrent layers whose units can be removed."""
    found = recurrent.recurrences(look.model, look.trial)
    return Found(tuple(look.group(g.name, KIND, g.width, [g.name]) for g in found.groups), found.refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one layer has lost half of its units."""
    trial = Trial(model, example)

    def halved(group: Group) -> nn.Module:
        found = recurrent.recurrence(model, group.name, trial)
        if isinstance(found, str):
            raise LookupError(found)
        small = surgery.twin(model)
        half = max(math.ceil(group.width / 2), recurrent.least(model, group.name))
        recurrent.cut(small, {found: strongest_units(model, found, half)})
        return small

    return halved


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind("units"):
        return ()
    reasons = layout.refusals(KIND)
    return (f"no hidden units can be removed ({reasons[0]})" if reasons else "the model has no recurrent layer",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"ratios": Knob.real(0.0, 0.98, per="units", ladder=(0.5, 0.75, 0.82, 0.88), strength=True)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": min(8, target.channel_step)}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` whose recurrent layers keep their most important units.

    Raises Problem("unsupported") for a name that is no recurrent layer, and where its readers
    cannot be found or cut.
    """
    example = example_of(tools.calibration, tools.signature)
    trial = Trial(model, example)
    kept: dict[Recurrence, Kept] = {}
    widths: dict[str, list[int]] = {}
    for name, ratio in options.ratios.items():
        if gone(model, name):
            continue
        found = recurrent.recurrence(model, name, trial)
        if isinstance(found, str):
            raise Problem("unsupported", f"the units of {name!r} cannot be removed: {found}")
        width = max(rounded_width(found.width, ratio, options.round_to), recurrent.least(model, name))
        widths[name] = [found.width, width]
        if width < found.width:
            kept[found] = strongest_units(model, found, width)
    small = surgery.twin(model)
    if kept:
        if reason := recurrent.mixes(list(kept), trial):
            raise Problem("unsupported", f"of {', '.join(g.name for g in kept)}: {reason}")
        recurrent.cut(small, kept)
        if reason := trial.breaks(small):
            raise Problem("unsupported", f"with fewer units in {', '.join(g.name for g in kept)} {reason}")
    small = surgery.own(small)
    return Applied(
        small,
        facts={"widths": widths, "parameters": [surgery.size(model), surgery.size(small)]},
    )
