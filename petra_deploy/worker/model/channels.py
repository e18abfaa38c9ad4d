"""Which channels of a model depend on which: the groups that structured pruning removes as units.

    found = couplings(model, Trial(model, example))
    found.groups     # those that were tried and hold
    found.refused    # layer -> why its channels must stay

torch_pruning (pinned: 1.6.1) proposes the groups from an autograd trace, by heuristics; this is the
only file that knows of it. Each proposal is then tried on the model itself, in float64: reordering
the channels of a group must leave the outputs as they are, and removing half of them must leave
the outputs' shapes as they are. What fails is refused with its reason.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.sizes import following
from petra_deploy.worker.model.surgery import Coupling, Place, Side
from petra_deploy.worker.model.trial import Tensors, Trial
from petra_deploy.worker.quiet import cause, quiet

ROOTS = (nn.modules.conv._ConvNd, nn.Linear)
PATIENCE = 8.0  # seconds of this thread's work for one group; a large network's takes one
OPAQUE = (nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)  # traced as one node each


@dataclass(frozen=True)
class Couplings:
    groups: tuple[Coupling, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # layer -> reason


def couplings(model: nn.Module, trial: Trial, elsewhere: Collection[str] = ()) -> Couplings:
    """The groups of `model` that hold when tried, but for those that the layers `elsewhere` make."""
    proposed = propose(model, trial.feeds[0])
    refused = dict(proposed.refused)
    sound: list[Coupling] = []
    for group in proposed.groups:
        if any(maker in elsewhere for maker in group.makers):
            continue
        found = "it has one channel only" if group.width < 2 else settled(group, trial)
        if isinstance(found, Coupling):
            sound.append(found)
        else:
            refused[group.name] = found
    if mixes(sound, trial) is not None:  # rarely: so all at once first, in float64 it is the dearest test
        mixed = {group: mixes([group], trial) for group in sound}
        refused |= {group.name: reason for group, reason in mixed.items() if reason is not None}
        sound = [group for group, reason in mixed.items() if reason is None]
    if breaks(sound, trial) is None:
        return Couplings(tuple(sound), refused)
    together: list[Coupling] = []
    for group in sound:  # each holds alone, but not beside one of the others
        reason = breaks([*together, group], trial)
        if reason is None:
            together.append(group)
        else:
            refused[group.name] = f"pruned together with other groups {reason}"
    return Couplings(tuple(together), refused)


def settled(group: Coupling, trial: Trial) -> Coupling | str:
    """The group, with the numbers that must follow its width where there are any, or why it cannot be cut."""
    reason = breaks([group], trial)
    if reason is None:
        return group
    return next((follower for follower in following(trial.model, group) if breaks([follower], trial) is None), reason)


def breaks(groups: Sequence[Coupling], trial: Trial) -> str | None:
    """What fails when every second channel of the groups is removed, or None."""
    changed = surgery.twin(trial.model)
    try:
        surgery.keep(changed, {group: range(0, group.width, 2) for group in groups})
    except Exception as error:
        return f"its layers cannot be cut ({cause(error)})"
    return trial.breaks(changed)


def mixes(groups: Sequence[Coupling], trial: Trial) -> str | None:
    """Why the channels of a group are no units: reordering them changes what the model computes. Else None."""
    generator = torch.Generator().manual_seed(0)
    orders = {group: torch.randperm(group.width, generator=generator).tolist() for group in groups}

    def change(model: nn.Module) -> None:
        for group, order in orders.items():
            surgery.reorder(model, group, order)

    reason = trial.differs(change)
    return (
        reason
        and f"the order of its channels matters, as between attention heads or groups of a norm: reordered, {reason}"
    )


def propose(model: nn.Module, example: Tensors) -> Couplings:
    """The groups that torch_pruning sees, as plain data, untried."""
    copied = _traceable(model)
    names = {module: name for name, module in submodules(copied)}
    parameters = {id(p): name for name, p in _own_parameters(copied)}
    try:
        with torch.enable_grad(), quiet():
            graph = torch_pruning.DependencyGraph().build_dependency(
                copied,
                example,
                customized_pruners=dict.fromkeys(OPAQUE[:3], _Recurrent()),
                verbose=False,
            )
    except Exception as error:  # the trace runs the user's forward, and has limits of its own
        return Couplings(refused={"*": f"the model cannot be traced ({cause(error)})"})
    watch = _Watch()
    for node in graph.module2node.values():
        node.dependencies = _Watched(node.dependencies, watch)
    watch.start = time.thread_time()
    order = {name: index for index, name in enumerate(names.values())}
    roots = [m for m in graph.module2node if isinstance(m, ROOTS) and m in names and not _depthwise(m)]
    roots.sort(key=lambda m: (graph.get_out_channels(m), order[names[m]]))  # parts before the whole they are joined to
    seen: set[str] = set()
    groups: list[Coupling] = []
    refused: dict[str, str] = {}
    for root in roots:
        if names[root] in seen:
            continue
        watch.start = time.thread_time()
        try:
            with quiet():
                group, reason = _read(graph, root, names, parameters)
                group = Coupling(_first(group, graph, copied, order), group.width, group.places)
        except Exception as error:
            refused[names[root]] = f"its dependencies cannot be traced ({cause(error)})"
            continue
        seen.update(place.layer for place in group.places if place.side == "out")
        if reason is None:
            groups.append(group)
        else:
            refused[group.name] = reason
    groups.sort(key=lambda g: order[g.name])
    return Couplings(tuple(groups), refused)


def _read(
    graph: Any, root: nn.Module, names: dict[nn.Module, str], parameters: dict[int, str]
) -> tuple[Coupling, str | None]:
    """The group whose channels `root` makes, and why it cannot be pruned, if so."""
    width = graph.get_out_channels(root)
    pruner = graph.get_pruner_of_module(root)
    places: list[Place] = []
    reason: str | None = None
    for item in graph.get_pruning_group(root, pruner.prune_out_channels, list(range(width))):
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, torch_pruning.ops._OutputOp):
            reason = "its channels are the model's outputs"
            continue
        positions: list[list[int]] = [[] for _ in range(width)]
        for position, channel in zip(item.idxs, item.root_idxs, strict=True):
            positions[channel].append(position)
        fixed = tuple(map(tuple, positions))
        if isinstance(module, nn.Parameter):
            if (name := parameters.get(id(module))) is None:
                reason = "a parameter of unknown place depends on it"
            else:
                dim = item.dep.target.pruning_dim % module.dim()
                places.append(Place(name, "both", fixed, dim))
            continue
        if module not in names:
            continue  # an operation without weights: concat, view, add
        side = _side(graph, module, handler)
        places.append(Place(names[module], side, fixed))
        try:
            surgery.axes(module, side)
        except TypeError as error:
            reason = reason or f"{names[module]} is {error}"
        if isinstance(module, OPAQUE) and side != "in":
            reason = reason or f"it is added to the units of {names[module]}"
    if reason is None and len({len(p.positions[0]) for p in places if p.side == "out"}) > 1:
        reason = "its channels are repeated in some layers"
    return Coupling(names[root], width, tuple(places)), reason


def _depthwise(layer: nn.Module) -> bool:
    """Its channels are those of the layer before it."""
    return isinstance(layer, ROOTS[0]) and layer.groups == layer.out_channels > 1


def _first(group: Coupling, graph: Any, model: nn.Module, order: dict[str, int]) -> str:
    """The first layer that makes exactly these channels: a layer that makes others too may be in several groups."""
    whole = [
        place.layer
        for place in group.places
        if place.side == "out" and graph.get_out_channels(submodule(model, place.layer)) == group.width
    ]
    return min(whole, key=order.__getitem__, default=group.name)


def _side(graph: Any, module: nn.Module, handler: Callable[..., Any]) -> Side:
    pruner = graph.get_pruner_of_module(module)
    if isinstance(module, nn.Embedding):
        return "out"
    if pruner.prune_out_channels == pruner.prune_in_channels:
        return "both"
    return "out" if handler == pruner.prune_out_channels else "in"


@dataclass
class _Watch:
    start: float = 0.0


class _Watched(list[Any]):
    """A node's dependencies. torch_pruning goes round for ever where views and splits of channels make a circle."""

    def __init__(self, items: Sequence[Any], watch: _Watch) -> None:
        super().__init__(items)
        self.watch = watch

    def __iter__(self) -> Iterator[Any]:
        if time.thread_time() - self.watch.start > PATIENCE:
            raise RecursionError("its channels come back to themselves through views")
        return super().__iter__()


class _Recurrent(BasePruningFunc):  # type: ignore[misc]
    """Tells torch_pruning that a recurrent layer's inputs and units are apart; it cuts nothing."""

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        return layer

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        return layer.hidden_size * (2 if layer.bidirectional else 1)

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        return layer.input_size


class _Opaque(torch.autograd.Function):
    """`value`, seen by autograd as one operation on `sources`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()


def _traceable(model: nn.Module) -> nn.Module:
    """A copy whose recurrent and attention layers are one node each in the autograd graph."""
    copied = surgery.twin(model, trainable=True)
    for _, module in submodules(copied):
        if isinstance(module, OPAQUE):
            module.forward = _hidden(module.forward, isinstance(module, nn.MultiheadAttention))  # type: ignore[method-assign]
    return copied


def _hidden(forward: Callable[..., Any], several: bool) -> Callable[..., Any]:
    def opaque(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            result, *rest = forward(*args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.grad_fn is not None]
        if not tensors:
            return (result, *rest)
        result = _Opaque.apply(result, *(tensors if several else tensors[:1]))  # type: ignore[no-untyped-call]
        return (result, *(_follow(result, value) for value in rest))

    return opaque


def _follow(result: Tensor, value: Any) -> Any:
    """States are features of the layer too: they come after its node."""
    if isinstance(value, tuple):
        return tuple(_follow(result, item) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return _Opaque.apply(value, result)  # type: ignore[no-untyped-call]
    return value


def _own_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    inner = getattr(model, "inner", model)
    return list(inner.named_parameters())
