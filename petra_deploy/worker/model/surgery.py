"""Cut channels out of layers, or put them in another order, given where each channel lies.

    coupling = Coupling(name="conv1", width=64, places=(Place("conv1", "out", positions), Place("bn1", "both", ...)))
    small = twin(model)                       # shares the weights, not the modules
    keep(small, {coupling: indices})          # slices every place of the group
    reorder(small, coupling, permutation)     # the outputs must not change: the test of a coupling

Weights are replaced, never written to, so the model that the twin was made of stays as it was. A
parameter that several layers share stays shared where all of them are cut alike.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from petra_deploy.worker.model.adapter import submodule

Side = Literal["out", "in", "both"]  # "both": depthwise convolutions and norms, whose sides are one


@dataclass(frozen=True)
class Place:
    """Where a group's channels lie in one layer: channel r has the entries `positions[r]`.

    `layer` is the user's name of a module, or of a parameter that no layer owns (then `dim` says
    along which dimension it is cut).
    """

    layer: str
    side: Side
    positions: tuple[tuple[int, ...], ...]
    dim: int | None = None


@dataclass(frozen=True)
class Coupling:
    """Channels that can only be removed together, in all `places` at once."""

    name: str  # the user's name of the first layer that makes these channels
    width: int
    places: tuple[Place, ...]
    sizes: tuple[tuple[str, str], ...] = ()  # (module, attribute) of numbers that are its width

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers that compute these channels (norms and depthwise convolutions among them)."""
        return tuple(place.layer for place in self.places if place.side != "in")


def twin(model: nn.Module, *, trainable: bool = False) -> nn.Module:
    """A copy in eval mode with modules of its own that shares the memory of `model`'s weights.

    `trainable` makes every floating-point parameter of the copy require gradients.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in model.buffers()}
    for p in model.parameters():
        shared[id(p)] = nn.Parameter(p.detach(), requires_grad=p.is_floating_point()) if trainable else p
    return copy.deepcopy(model, shared).eval()


def own(model: nn.Module) -> nn.Module:
    """The same model with weights of its own: nothing is shared any more with what it was made from."""
    return copy.deepcopy(model)


def size(model: nn.Module) -> int:
    """Parameters of `model`, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def keep(model: nn.Module, kept: Mapping[Coupling, Sequence[int]]) -> None:
    """Change `model` in place: of each coupling only the `kept` channels stay, in ascending order."""
    masks: dict[tuple[str, Side, int | None], Tensor] = {}
    for coupling, channels in kept.items():
        gone = sorted(set(range(coupling.width)) - set(channels))
        for place in coupling.places:
            mask = masks.setdefault(_key(place), torch.ones(extent(model, place), dtype=torch.bool))
            mask[[position for channel in gone for position in place.positions[channel]]] = False
    select(model, {key: mask.nonzero().flatten() for key, mask in masks.items()})
    for coupling, channels in kept.items():
        for module, attribute in coupling.sizes:
            setattr(submodule(model, module), attribute, len(channels))


def reorder(model: nn.Module, coupling: Coupling, order: Sequence[int]) -> None:
    """Change `model` in place: channel r becomes what channel `order[r]` was, in every place."""
    indices: dict[tuple[str, Side, int | None], Tensor] = {}
    for place in coupling.places:
        index = indices.setdefault(_key(place), torch.arange(extent(model, place)))
        for new, old in enumerate(order):
            index[list(place.positions[new])] = torch.tensor(place.positions[old], dtype=torch.long)
    select(model, indices)


def weights(model: nn.Module, place: Place) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of each tensor cut at `place`, with the cut dimension first."""
    if place.dim is not None:
        yield "weight", _parameter(model, place.layer).detach().movedim(place.dim, 0)
        return
    layer = submodule(model, place.layer)
    for name, dim in axes(layer, place.side):
        yield name, cast(Tensor, getattr(layer, name)).detach().movedim(dim, 0)


def axes(layer: nn.Module, side: Side) -> tuple[tuple[str, int], ...]:
    """Which tensors of `layer` hold its channels on this side, and along which dimension.

    Raises TypeError for a layer that cannot be cut so.
    """
    names: tuple[str, ...]
    if isinstance(layer, _ConvNd):
        if side == "both" or layer.groups == 1:
            wide = (1, 0) if layer.transposed else (0, 1)
            names = ("weight",) if side == "in" else ("weight", "bias")
            dims = {"weight": wide[1] if side == "in" else wide[0], "bias": 0}
        else:
            raise TypeError("a convolution in groups")
    elif isinstance(layer, nn.Linear):
        names = ("weight",) if side == "in" else ("weight", "bias")
        dims = {"weight": 1 if side == "in" else 0, "bias": 0}
    elif isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm):
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
            raise TypeError("a LayerNorm over several dimensions")
        names = ("weight", "bias", "running_mean", "running_var")
        dims = dict.fromkeys(names, 0)
    elif isinstance(layer, nn.PReLU):
        names = ("weight",) if layer.weight.numel() > 1 else ()
        dims = {"weight": 0}
    elif isinstance(layer, nn.Embedding) and side != "in":
        names, dims = ("weight",), {"weight": 1}
    elif isinstance(layer, nn.RNNCellBase) and side == "in":
        names, dims = ("weight_ih",), {"weight_ih": 1}
    elif isinstance(layer, nn.RNNBase) and side == "in":
        names = tuple(n for n in ("weight_ih_l0", "weight_ih_l0_reverse") if hasattr(layer, n))
        dims = dict.fromkeys(names, 1)
    else:
        raise TypeError(f"a {type(layer).__name__}")
    held = [name for name in names if getattr(layer, name, None) is not None]
    if computed := [name for name in held if not is_plain(layer, name)]:
        raise TypeError(f"a {type(layer).__name__} whose {computed[0]} is computed (a parametrization or weight norm)")
    return tuple((name, dims[name]) for name in held)


def is_plain(layer: nn.Module, name: str) -> bool:
    """Whether the tensor is the layer's own; assigning to a computed one would write into the original's weights."""
    return name in layer._parameters or name in layer._buffers


def select(model: nn.Module, indices: Mapping[tuple[str, Side, int | None], Tensor]) -> None:
    """Change `model` in place: {(layer, side, dim): the entries that it then has, by their old positions}."""
    made: dict[tuple[int, int, bytes], nn.Parameter] = {}
    originals: list[Tensor] = []  # keeps their ids from being used again

    def cut(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        values = tensor.detach().index_select(dim, index.to(tensor.device))
        if not isinstance(tensor, nn.Parameter):
            return values
        originals.append(tensor)
        key = (id(tensor), dim, index.numpy().tobytes())
        return made.setdefault(key, nn.Parameter(values, requires_grad=tensor.requires_grad))

    for (name, side, dim), index in indices.items():
        if dim is not None:
            owner, _, last = name.rpartition(".")
            holder = submodule(model, owner)
            setattr(holder, last, cut(getattr(holder, last), dim, index))
            continue
        layer = submodule(model, name)
        for tensor, axis in axes(layer, side):
            setattr(layer, tensor, cut(getattr(layer, tensor), axis, index))
        _resize(layer, side, len(index))


def _resize(layer: nn.Module, side: Side, size: int) -> None:
    """Set the sizes that a layer keeps beside its weights."""
    if isinstance(layer, _ConvNd | nn.Linear):
        kind = "channels" if isinstance(layer, _ConvNd) else "features"
        if side != "in":
            setattr(layer, f"out_{kind}", size)
        if side != "out":
            setattr(layer, f"in_{kind}", size)
        if side == "both":
            layer.groups = size
    elif isinstance(layer, _NormBase):
        layer.num_features = size
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = size
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (size,)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = size if layer.weight.numel() > 1 else 1
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = size
    elif isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        layer.input_size = size


def extent(model: nn.Module, place: Place) -> int:
    """How many entries the layer has on this side."""
    if place.dim is not None:
        return _parameter(model, place.layer).shape[place.dim]
    layer = submodule(model, place.layer)
    found = axes(layer, place.side)
    if found:
        name, dim = found[0]
        return cast(int, getattr(layer, name).shape[dim])
    for size in ("num_features", "num_channels", "normalized_shape"):  # a norm without weights
        if (value := getattr(layer, size, None)) is not None:
            return int(value[0] if isinstance(value, tuple) else value)
    return 1 + max(position for positions in place.positions for position in positions)


def _parameter(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return cast(Tensor, getattr(submodule(model, owner), last))


def _key(place: Place) -> tuple[str, Side, int | None]:
    return place.layer, place.side, place.dim
