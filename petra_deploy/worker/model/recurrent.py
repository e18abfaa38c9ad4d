"""The hidden units of recurrent layers, and who reads them: what shrink_rnn cuts as units.

    found = recurrences(model, Trial(model, example))
    found.groups[0].readers      # ("head", ...): the layers whose weights have a column for each unit
    cut(small, {group: kept})    # in place, on a twin

Who reads a unit is found by trying, not by reading code. Every layer with weights is made to answer
what it answered before; the recurrent layer's answer is changed in one unit; those inputs of other
layers that change, and where, are the unit's readers. What a unit reaches without passing a layer
(the model's own outputs) keeps it from being removed. Reordering the units must then leave the
outputs as they are, and removing half of them must leave the outputs' shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.quiet import cause
from petra_deploy.worker.model.readers import Part, Readers, Unreadable, find_readers
from petra_deploy.worker.model.surgery import Place, Side
from petra_deploy.worker.model.trial import Trial

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
Kept = dict[Part, tuple[int, ...]]  # (layer, direction) -> units that stay, ascending, as many in each


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A recurrent layer whose units can be removed."""

    name: str
    width: int
    parts: tuple[Part, ...]  # (layer, direction): each may keep units of its own choice ...
    tied: bool  # ... unless units of several parts meet in one feature: then all keep the same
    readers: Readers


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
    if layer.proj_size:
        return "its outputs are projected (proj_size)"
    if not all(surgery.is_plain(layer, weight) for weight in layer._flat_weights_names):
        return "its weights are computed (a parametrization or weight norm)"
    if layer.hidden_size < 2:
        return "it has one unit only"
    try:
        readers = find_readers(model, name, trial.feeds[0])
    except Unreadable as error:
        return str(error)
    parts = tuple((depth, way) for depth in range(layer.num_layers) for way in range(1 + layer.bidirectional))
    taken: dict[tuple[str, Side, int], tuple[Part, int]] = {}
    tied = False
    for (part, reader, side), positions in readers.items():
        for unit, places in enumerate(positions):
            for place in places:
                before = taken.setdefault((reader, side, place), (part, unit))
                if before[1] != unit:
                    return f"a feature of {reader} depends on several of its units"
                tied = tied or before[0] != part
    return Recurrence(name, layer.hidden_size, parts, tied, readers)


def breaks(groups: Sequence[Recurrence], trial: Trial) -> str | None:
    """What fails when every second unit of these layers is removed, or None."""
    changed = surgery.twin(trial.model)
    try:
        cut(changed, {group: dict.fromkeys(group.parts, tuple(range(0, group.width, 2))) for group in groups})
    except Exception as error:
        return f"its readers cannot be cut ({cause(error)})"
    return trial.breaks(changed)


def mixes(groups: Sequence[Recurrence], trial: Trial) -> str | None:
    """Why removing units would not be what it says: reordering them changes what the model computes. Else None."""
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
    places: dict[tuple[str, Side], Tensor] = {}  # reader -> old position of each new one, -1: removed
    for group, units in kept.items():
        layer = submodule(model, group.name)
        assert isinstance(layer, nn.RNNBase)
        for (part, reader, side), positions in group.readers.items():
            index = places.setdefault(
                (reader, side), torch.arange(surgery.extent(model, Place(reader, side, positions)))
            )
            for unit in range(group.width):
                index[list(positions[unit])] = -1
            for new, unit in enumerate(units[part]):  # its columns move up to where the new-th unit was read
                index[list(positions[new])] = torch.tensor(positions[unit])
        _cut_layer(layer, units)
    surgery.select(model, {(reader, side, None): index[index >= 0] for (reader, side), index in places.items()})


def _cut_layer(layer: nn.RNNBase, kept: Kept) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[type(layer)]
    width, ways = layer.hidden_size, 1 + layer.bidirectional
    size = len(next(iter(kept.values())))
    layer.hidden_size = size
    for (depth, way), units in kept.items():
        suffix = f"_l{depth}" + ("_reverse" if way else "")
        columns = torch.tensor(units)
        rows = torch.cat([columns + gate * width for gate in range(gates)])
        for name in (f"weight_ih{suffix}", f"weight_hh{suffix}", f"bias_ih{suffix}", f"bias_hh{suffix}"):
            tensor = getattr(layer, name, None)
            if tensor is None:
                continue
            values = tensor.detach()[rows.to(tensor.device)]
            if name.startswith("weight_hh"):
                values = values[:, columns]
            elif name.startswith("weight_ih") and depth > 0:
                before = [torch.tensor(kept[depth - 1, w]) + w * width for w in range(ways)]
                values = values[:, torch.cat(before)]
            setattr(layer, name, nn.Parameter(values.contiguous(), requires_grad=tensor.requires_grad))
