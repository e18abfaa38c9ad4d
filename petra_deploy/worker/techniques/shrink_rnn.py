"""Remove hidden units of LSTM, GRU and RNN layers: the time steps stay, each becomes cheaper.

Every layer and direction keeps its own most important units, equally many; the layers that read
them lose the matching columns. Fewer units, trained long, beat every other way to speed up a
recurrent network (docs/measurements.md). Who reads a unit is found by trying: worker/model/readers.py.

    Step(technique="shrink_rnn", options={"ratios": {"rnn": 0.75}, "round_to": 8})
"""

from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import recurrent, surgery
from petra_deploy.worker.model.adapter import submodule
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.importance import rounded_width, strongest
from petra_deploy.worker.model.readers import Part
from petra_deploy.worker.model.recurrent import Kept, Recurrence
from petra_deploy.worker.model.trial import Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    ratios: dict[str, Annotated[float, Ge(0), Le(0.98)]]  # recurrent layer -> share of its units to remove
    round_to: Annotated[int, Ge(1)] = 8  # new sizes are multiples of this


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind("units"):
        return ()
    reasons = [f"{name.partition('/')[2]}: {why}" for name, why in layout.refused.items() if name.startswith("units/")]
    return (f"no hidden units can be removed ({reasons[0]})" if reasons else "the model has no recurrent layer",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"ratios": Knob.real(0.0, 0.95, per="units", ladder=(0.5, 0.75, 0.82, 0.88), strength=True)}


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
        width = rounded_width(found.width, ratio, options.round_to)
        widths[name] = [found.width, width]
        if width < found.width:
            kept[found] = _strongest(model, found, width)
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


def _strongest(model: nn.Module, group: Recurrence, count: int) -> Kept:
    """In each layer and direction the units with the largest weights, in and out of them."""
    scores = {part: _scores(model, group, part) for part in group.parts}
    if group.tied:
        scores = dict.fromkeys(group.parts, torch.stack(list(scores.values())).sum(0))
    return {part: tuple(strongest(score, count)) for part, score in scores.items()}


def _scores(model: nn.Module, group: Recurrence, part: Part) -> Tensor:
    """The product of the norms of what a unit receives and of what is read of it: float64, (units,)."""
    layer = submodule(model, group.name)
    depth, way = part
    suffix = f"_l{depth}" + ("_reverse" if way else "")
    width = group.width

    def weight(name: str) -> Tensor:
        return cast(Tensor, getattr(layer, name)).detach().double().cpu()

    received = torch.cat([weight(f"weight_ih{suffix}"), weight(f"weight_hh{suffix}")], 1)
    incoming = received.reshape(-1, width, received.shape[1]).square().sum((0, 2))
    outgoing = weight(f"weight_hh{suffix}").square().sum(0)
    for name in (f"weight_ih_l{depth + 1}", f"weight_ih_l{depth + 1}_reverse"):
        if hasattr(layer, name):
            outgoing += weight(name)[:, way * width : (way + 1) * width].square().sum(0)
    for (source, reader, side), positions in group.readers.items():
        if source == part:
            for name, values in surgery.weights(model, surgery.Place(reader, side, positions)):
                if name.startswith("weight"):
                    squares = values.double().cpu().reshape(len(values), -1).square().sum(1)
                    outgoing += torch.stack([squares[list(at)].sum() for at in positions])
    return (incoming * outgoing).sqrt()
