"""The hidden units of recurrent layers, and who reads them: what shrink_rnn cuts as units.

    found = recurrences(model, Trial(model, example))
    found.groups[0].readers      # ("head", ...): the layers whose weights have a column for each unit
    cut(small, {group: kept})    # in place, on a twin

Who reads a unit is found by trying, not by reading code. Every layer with weights is made to answer
what it answered before; the recurrent layer's answer is changed in one unit; those inputs of other
layers that change, and where, are the unit's readers. What a unit reaches without passing a layer
(the model's own outputs) keeps it from being removed. Reordering the units must then leave the
outputs as they are, and removing half of them must leave the outputs' shapes. States that the layer
starts from, where they are parameters, lose the same units; with projections (proj_size) the units
are those inside, and the projected features stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.initial_states import initial_states
from petra_deploy.worker.model.readers import Part, Readers, Unreadable, find_readers
from petra_deploy.worker.model.surgery import Place, Side
from petra_deploy.worker.model.trial import Trial
from petra_deploy.worker.quiet import cause

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
Kept = dict[Part, tuple[int, ...]]  # (layer, direction) -> units that stay, ascending, as many in each


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A recurrent layer whose units can be removed."""

    name: str
    width: int
    parts: tuple[Part, ...]  # (layer, direction): each may keep units of its own choice ...
    tied: bool  # ... unless units of several parts meet in one feature: then all keep the same
    readers: Readers
    states: tuple[tuple[str, int], ...] = ()  # tensors that it starts from, and their dimension along the units


@dataclass(frozen=True)
class Recurrences:
    groups: tuple[Recurrence, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


def recurrences(model: nn.Module, trial: Trial) -> Recurrences:
    """Those that hold when tried, alone and together."""
    sound: list[Recurrence] = []
    refused: dict[str, str] = {}
    for name, layer in submodules(model):
        if not isinstance(layer, RECURRENT):
            continue
        found = recurrence(model, name, trial)
        reason = found if isinstance(found, str) else breaks([*sound, found], trial) or mixes([found], trial)
        if reason is None and isinstance(found, Recurrence):
            sound.append(found)
        else:
            refused[name] = str(reason)
    return Recurrences(tuple(sound), refused)


def recurrence(model: nn.Module, name: str, trial: Trial) -> Recurrence | str:
    """The group of one layer, untried, or why there is none."""
    layer = submodule(model, name)
    if not isinstance(layer, RECURRENT):
        return f"{name} is no recurrent layer"
    if type(layer) not in GATES:
        return "it is a recurrent layer of the user's own making"
    if not all(name in layer._parameters for name in _weights(layer)):
        return "its weights are computed (a parametrization or weight norm)"
    if layer.hidden_size < 2:
        return "it has one unit only"
    if getattr(layer, "proj_size", 0) + 1 >= layer.hidden_size:
        return "it has hardly more units than projected features"
    try:
        readers = find_readers(model, name, trial.feeds[0])
    except Unreadable as error:
        return str(error)
    states = initial_states(model, name, trial.feeds[0])
    parts = _parts(layer)
    taken: dict[tuple[str, Side, int], tuple[Part, int]] = {}
    tied = bool(states) and len(parts) > 1
    for (part, reader, side), positions in readers.items():
        for unit, places in enumerate(positions):
            for place in places:
                before = taken.setdefault((reader, side, place), (part, unit))
                if before[1] != unit:
                    return f"a feature of {reader} depends on several of its units"
                tied = tied or before[0] != part
    return Recurrence(name, layer.hidden_size, parts, tied, readers, states)


def breaks(groups: Sequence[Recurrence], trial: Trial) -> str | None:
    """What fails when every second unit of these layers is removed, or None."""
    if reason := _contested(groups):
        return reason
    changed = surgery.twin(trial.model)
    halves = {
        group: tuple(range(0, group.width, 2)) if 2 * least(trial.model, group.name) <= group.width
        else tuple(range(least(trial.model, group.name)))
        for group in groups
    }  # fmt: skip
    try:
        cut(changed, {group: dict.fromkeys(group.parts, half) for group, half in halves.items()})
    except Exception as error:
        return f"its readers cannot be cut ({cause(error)})"
    return trial.breaks(changed)


def _contested(groups: Sequence[Recurrence]) -> str | None:
    """Two layers that start from one tensor would have to lose the same units."""
    taken: dict[str, str] = {}
    for group in groups:
        for tensor, _ in group.states:
            if (other := taken.setdefault(tensor, group.name)) != group.name:
                return f"{group.name} and {other} start from the same state {tensor}"
    return None


def mixes(groups: Sequence[Recurrence], trial: Trial) -> str | None:
    """Why removing units would not be what it says: reordering them changes what the model computes. Else None."""
    if reason := _contested(groups):
        return reason
    generator = torch.Generator().manual_seed(0)
    orders: dict[Recurrence, Kept] = {}
    for group in groups:
        one = tuple(torch.randperm(group.width, generator=generator).tolist())
        orders[group] = {
            part: one if group.tied else tuple(torch.randperm(group.width, generator=generator).tolist())
            for part in group.parts
        }
    reason = trial.differs(lambda model: cut(model, orders))
    return reason and f"its units are not read where they seem to be: reordered, {reason}"


def cut(model: nn.Module, kept: Mapping[Recurrence, Kept]) -> None:
    """Change `model` in place: each part's units become the given ones, in the given order."""
    places: dict[tuple[str, Side, int | None], Tensor] = {}  # reader -> old position of each new one, -1: removed
    for group, units in kept.items():
        layer = submodule(model, group.name)
        for (part, reader, side), positions in group.readers.items():
            index = places.setdefault(
                (reader, side, None), torch.arange(surgery.extent(model, Place(reader, side, positions)))
            )
            for unit in range(group.width):
                index[list(positions[unit])] = -1
            for new, unit in enumerate(units[part]):  # its columns move up to where the new-th unit was read
                index[list(positions[new])] = torch.tensor(positions[unit])
        for tensor, dim in group.states:
            places[tensor, "out", dim] = torch.tensor(units[group.parts[0]])
        _cut_layer(layer, units)
    surgery.select(model, {place: index[index >= 0] for place, index in places.items()})


def least(model: nn.Module, name: str) -> int:
    """The fewest units that the layer may have: more than it projects to."""
    return int(getattr(submodule(model, name), "proj_size", 0)) + 1


def suffix(layer: nn.Module, part: Part) -> str:
    """What the names of a part's weights end in: "_l1_reverse"; nothing for a cell."""
    depth, way = part
    return "" if isinstance(layer, nn.RNNCellBase) else f"_l{depth}" + ("_reverse" if way else "")


def _parts(layer: nn.Module) -> tuple[Part, ...]:
    if not isinstance(layer, nn.RNNBase):
        return ((0, 0),)
    return tuple((depth, way) for depth in range(layer.num_layers) for way in range(1 + layer.bidirectional))


def _weights(layer: nn.Module) -> list[str]:
    if isinstance(layer, nn.RNNBase):
        return list(layer._flat_weights_names)
    return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if getattr(layer, "bias", False) else [])]


def _cut_layer(layer: nn.Module, kept: Kept) -> None:
    gates, width = GATES[type(layer)], int(layer.hidden_size)  # type: ignore[arg-type]
    projected = bool(getattr(layer, "proj_size", 0))
    layer.hidden_size = len(next(iter(kept.values())))  # type: ignore[assignment]
    for part, units in kept.items():
        depth, end = part[0], suffix(layer, part)
        columns = torch.tensor(units)
        rows = torch.cat([columns + gate * width for gate in range(gates)])
        for name in (f"{kind}{end}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")):
            tensor = getattr(layer, name, None)
            if tensor is None:
                continue
            if name.startswith("weight_hr"):  # from the units to the projected features
                values = tensor.detach()[:, columns]
            else:
                values = tensor.detach()[rows.to(tensor.device)]
            if name.startswith("weight_hh") and not projected:
                values = values[:, columns]
            elif name.startswith("weight_ih") and depth > 0 and not projected:
                before = [torch.tensor(kept[depth - 1, way]) + way * width for way in range(_ways(kept))]
                values = values[:, torch.cat(before)]
            setattr(layer, name, nn.Parameter(values.contiguous(), requires_grad=tensor.requires_grad))


def _ways(kept: Kept) -> int:
    return 1 + max(way for _, way in kept)
