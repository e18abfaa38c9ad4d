"""Which layers read the units of a recurrent layer, and at which positions: found by perturbing them.

    readers = find_readers(model, "rnn", feeds)
    readers[(0, 0), "head", "in"][5]     # the columns of `head` that unit 5 of layer 0, forward, feeds

One pass records what every layer with weights is given and answers. Then, for one unit at a time,
the recurrent layer's answer is changed in that unit alone while the other layers repeat their
recorded answers: whatever changes at their doors came straight from the unit, through operations
without weights only. Norms keep features apart but for their statistics, so they let changes pass.
A layer or cell that is called step by step may be given its own unit as its state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from petra_deploy.worker.model import surgery, trial
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.surgery import Side
from petra_deploy.worker.model.trial import Tensors

Part = tuple[int, int]  # (layer, direction) of a recurrent layer; (0, 0) of a cell
Readers = dict[tuple[Part, str, Side], tuple[tuple[int, ...], ...]]  # unit -> positions
NORMS = (nn.LayerNorm, _BatchNorm)


class Unreadable(Exception):
    """Why the readers of a layer cannot be told."""


@dataclass
class _Call:
    source: Tensor  # the first input
    others: list[Tensor]
    result: Any


@dataclass
class _Layer:
    name: str
    module: nn.Module
    calls: list[_Call] = field(default_factory=list)
    next: int = 0


@dataclass(frozen=True)
class _Source:
    """One of a recurrent layer's answers: its sequence (0), or row `row` of a state (1, 2); a cell's states (0, 1)."""

    part: Part
    which: int
    row: int | None  # None: all of the answer
    offset: int  # of unit 0 in the last dimension


def find_readers(model: nn.Module, name: str, feeds: Tensors) -> Readers:
    """Raises Unreadable where a unit reaches the model's outputs, or a layer that cannot be cut."""
    copied = surgery.twin(model)
    layers = [_Layer(n, m) for n, m in _with_weights(copied)]
    rnn = submodule(copied, name)
    assert isinstance(rnn, nn.RNNBase | nn.RNNCellBase)
    with torch.no_grad():
        for layer in layers:
            layer.module.forward = _recording(layer)
        outputs = trial.outputs(copied, feeds)
        replay = _Replay(copied, layers, name, feeds, outputs)
        if not replay.watched.calls:
            raise Unreadable("it is not called")
        readers: Readers = {}
        for source in _sources(rnn, len(_answers(replay.watched.calls[0].result))):
            if not replay.changes(source, range(rnn.hidden_size)):
                continue
            found = [replay.changes(source, [unit]) for unit in range(rnn.hidden_size)]
            for reader in {key for each in found for key in each}:
                positions = tuple(each.get(reader, ()) for each in found)
                if not positions[0] or len({len(p) for p in positions}) > 1:
                    raise Unreadable(f"{reader[0]} reads some of its units only")
                _merge(readers, (source.part, *reader), positions)
    if not readers and not getattr(rnn, "proj_size", 0):
        raise Unreadable("no layer reads its units")
    return readers


def _merge(readers: Readers, key: tuple[Part, str, Side], positions: tuple[tuple[int, ...], ...]) -> None:
    before = readers.get(key, ((),) * len(positions))
    readers[key] = tuple(tuple(dict.fromkeys((*a, *b))) for a, b in zip(before, positions, strict=True))


def _sources(rnn: nn.RNNBase | nn.RNNCellBase, answers: int) -> Iterator[_Source]:
    """Where units show. Those of a projecting LSTM (proj_size) show in its cell state alone."""
    if isinstance(rnn, nn.RNNCellBase):
        yield from (_Source((0, 0), which, None, 0) for which in range(answers))
        return
    ways, last = 1 + rnn.bidirectional, rnn.num_layers - 1
    if not rnn.proj_size:
        for way in range(ways):
            yield _Source((last, way), 0, None, way * rnn.hidden_size)
    for which in range(2 if rnn.proj_size else 1, answers):
        for depth in range(rnn.num_layers):
            for way in range(ways):
                yield _Source((depth, way), which, depth * ways + way, 0)


class _Replay:
    """The model with every layer's recorded answers, and one unit's changed."""

    def __init__(self, model: nn.Module, layers: list[_Layer], name: str, feeds: Tensors, outputs: Tensors) -> None:
        self.model, self.layers, self.feeds, self.outputs = model, layers, feeds, outputs
        self.watched = next(layer for layer in layers if layer.name == name)
        self.found: dict[tuple[str, Side], set[int]] = {}
        for layer in layers:
            layer.module.forward = self._repeating(layer)

    def changes(self, source: _Source, units: Any) -> dict[tuple[str, Side], tuple[int, ...]]:
        """Where other layers' inputs change when these units of `source` do."""
        self.found, self.source = {}, source
        self.features = [source.offset + unit for unit in units]
        for layer in self.layers:
            layer.next = 0
        for before, now in zip(self.outputs, trial.outputs(self.model, self.feeds), strict=True):
            if before.shape != now.shape or not torch.equal(before.nan_to_num(), now.nan_to_num()):
                raise Unreadable("its units reach the model's outputs without a layer between")
        return {key: tuple(sorted(positions)) for key, positions in self.found.items()}

    def _repeating(self, layer: _Layer) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if layer.next >= len(layer.calls):
                raise Unreadable(f"{layer.name} is not called as often as before")
            call = layer.calls[layer.next]
            layer.next += 1
            source, others = _split(args, kwargs)
            changed = not _equal(source, call.source)
            for now, before in zip(others, call.others, strict=True):
                if not _equal(now, before) and not (layer is self.watched and self._only_the_unit(now, before)):
                    raise Unreadable(f"{layer.name} reads its units as more than its input")
            if layer is self.watched:
                if changed:
                    raise Unreadable("it reads its own units")
                return self._disturbed(call.result)
            if changed:
                self._note(layer, source, call.source)
                if isinstance(layer.module, NORMS):
                    return call.result + (source - call.source)
            return call.result

        return forward

    def _only_the_unit(self, now: Tensor, before: Tensor) -> bool:
        """Whether a layer is given its own answer as its state: what was changed in a unit is changed in that unit."""
        if now.shape != before.shape:
            return False
        moved = (now != before).flatten(0, -2).any(0).nonzero().flatten().tolist()
        return moved == sorted(feature - self.source.offset for feature in self.features)

    def _note(self, layer: _Layer, now: Tensor, before: Tensor) -> None:
        module = layer.module
        if now.shape != before.shape:
            raise Unreadable(f"the input of {layer.name} changes its shape")
        if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase | nn.LayerNorm):
            dim = now.dim() - 1
        elif isinstance(module, _ConvNd | _BatchNorm | nn.PReLU):
            dim = 1
        else:
            raise Unreadable(f"{layer.name}, a {type(module).__name__}, reads its units")
        side: Side = "in" if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase | _ConvNd) else "both"
        try:
            surgery.axes(module, side)
        except TypeError as error:
            raise Unreadable(f"{layer.name}, which reads its units, is {error}") from None
        moved = (now != before).movedim(dim, 0).flatten(1).any(1)
        self.found.setdefault((layer.name, side), set()).update(moved.nonzero().flatten().tolist())

    def _disturbed(self, result: Any) -> Any:
        answers = [tensor.clone() for tensor in _answers(result)]
        target = answers[self.source.which]
        if self.source.row is not None:
            target = target[self.source.row]
        noise = torch.randn((*target.shape[:-1], len(self.features)), generator=torch.Generator().manual_seed(1))
        target[..., self.features] += 3 * noise.to(target)  # large: it must show through maxima and rectifiers
        if isinstance(result, Tensor):
            return answers[0]
        return (answers[0], answers[1]) if len(answers) == 2 else (answers[0], (answers[1], answers[2]))


def _recording(layer: _Layer) -> Callable[..., Any]:
    forward = layer.module.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        source, others = _split(args, kwargs)
        layer.calls.append(_Call(source, others, result))
        return result

    return record


def _with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that own parameters and have no parts, and attention as a whole."""
    attention: list[str] = []
    for name, module in submodules(model):
        if any(name.startswith(f"{outer}.") for outer in attention):
            continue
        if isinstance(module, nn.MultiheadAttention):
            attention.append(name)
            yield name, module
        elif next(module.children(), None) is None and next(module.parameters(), None) is not None:
            yield name, module


def _split(args: Any, kwargs: Any) -> tuple[Tensor, list[Tensor]]:
    """The first input, and all other tensors given."""
    flat: list[Any] = []
    for value in (*args, *kwargs.values()):
        flat += value if isinstance(value, tuple | list) else [value]
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if not tensors or len(tensors) < len([v for v in flat if v is not None and not isinstance(v, bool | int | float)]):
        raise Unreadable("a layer is given something other than tensors")
    return tensors[0], tensors[1:]


def _answers(result: Any) -> list[Tensor]:
    """Sequence and states of a recurrent layer's result, or a cell's states, flat."""
    if isinstance(result, Tensor):
        return [result]
    sequence, state = result
    flat = [sequence, *state] if isinstance(state, tuple) else [sequence, state]
    if not all(isinstance(tensor, Tensor) for tensor in flat):
        raise Unreadable("it works on packed sequences")
    return flat


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
