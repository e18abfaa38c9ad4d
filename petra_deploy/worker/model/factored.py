"""Two thin layers in the place of one wide layer, through `rank` features between them.

    layer = model.get_submodule("fc")                       # Linear, Conv1d/2d/3d or Embedding
    left, values, right = svd(matrix(layer))
    adapter.replace(model, "fc", in_channels(layer, left[:, :8], right[:8]))
    pairs(model)                                            # [("fc", Factored)]: what a loss on the factors finds

Each layer is seen as a matrix (outputs, inputs): a convolution's inputs are its windows, an embedding's
its codes. Channel form: a convolution of the same window to `rank` channels, then 1x1 (Jaderberg, Vedaldi and
Zisserman, arXiv 1405.3866, and Zhang and others, arXiv 1505.06798). Spatial form: k x 1, then 1 x k (the former).
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from petra_deploy.worker.model import adapter, surgery
from petra_deploy.worker.model.trial import Trial

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVS, nn.Embedding)


class Factored(nn.Sequential):
    """`first` gives `rank` features, `second` makes the old outputs of them and adds the bias."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(OrderedDict(first=first, second=second))

    @property
    def rank(self) -> int:
        return int(cast(Any, self.second).weight.shape[1])

    @property
    def weight(self) -> Tensor:
        """The matrix that two linear factors stand for: torch's fused encoder layer reads it."""
        if not isinstance(self.first, nn.Linear):
            raise AttributeError("weight")
        return cast(Tensor, cast(Any, self.second).weight @ self.first.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", cast(Any, self.second).bias)


class _Hidden(nn.Module):
    """A layer that can be called, and of which nothing can be read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.hidden = layer

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.hidden(x))


def pairs(model: nn.Module) -> list[tuple[str, Factored]]:
    """The factored layers of `model`, by the user's names."""
    return [(name, module) for name, module in adapter.submodules(model) if isinstance(module, Factored)]


def outer(model: nn.Module, name: str) -> str:
    """The layer that makes the channels of the one called `name`: its second factor where it was factored."""
    try:
        return f"{name}.second" if isinstance(adapter.submodule(model, name), Factored) else name
    except AttributeError:
        return name


def sound(model: nn.Module, trial: Trial, accepts: Callable[[nn.Module], bool]) -> tuple[list[str], dict[str, str]]:
    """Names of the layers that can be factored, of those that `accepts` takes; why the others cannot."""
    refused: dict[str, str] = {}
    names: list[str] = []
    for name, layer in adapter.submodules(model):
        if accepts(layer):
            if reason := obstacle(model, layer):
                refused[name] = reason
            else:
                names.append(name)
    read = _read(names, trial)
    refused |= dict.fromkeys(read, "its weight is read by other code than its own call")
    return [name for name in names if name not in read], refused


def _read(names: list[str], trial: Trial) -> list[str]:
    """Those of the layers whose weights are read elsewhere; layers with the same last name are alike, most often."""
    if not names or not _read_elsewhere(names, trial):
        return []
    if len(names) == 1:
        return names
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.rpartition(".")[2], []).append(name)
    parts = list(alike.values()) if len(alike) > 1 else [[name] for name in names]
    return [name for part in parts for name in _read(part, trial)]


def obstacle(model: nn.Module, layer: nn.Module) -> str | None:
    """Why `layer` cannot be factored, as far as looking at it tells."""
    if not isinstance(layer, LAYERS):
        return f"a {type(layer).__name__} has no factored form here"
    plain = next(kind for kind in LAYERS if isinstance(layer, kind))
    if type(layer).forward is not plain.forward:
        return f"a {type(layer).__name__} has a forward of its own"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight without calling it"
    if parametrize.is_parametrized(layer) or not surgery.is_plain(layer, "weight") or _normed(layer):
        return "its weight is computed (a parametrization or weight norm)"
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        return "it is a convolution in groups"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "it rescales its rows when they are read (max_norm)"
    if not layer.weight.is_floating_point():
        return f"its weight is of {layer.weight.dtype}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "code hangs on its calls (hooks)"
    owners = [n for n, m in model.named_modules(remove_duplicate=False) for p in m._parameters.values()
              if p is layer.weight]  # fmt: skip
    if len(owners) > 1:
        return f"its weight is shared ({' and '.join(name.removeprefix('inner.') for name in owners[:2])})"
    return None


def _normed(layer: nn.Module) -> bool:
    """Whether torch's older weight_norm or spectral_norm hangs on it."""
    return any(hasattr(layer, name) for name in ("weight_g", "weight_orig"))


def _read_elsewhere(names: Iterable[str], trial: Trial) -> str | None:
    changed = surgery.twin(trial.model)
    for name in names:
        adapter.replace(changed, name, _Hidden(adapter.submodule(changed, name)))
    return trial.breaks(changed)


def matrix(layer: nn.Module) -> Tensor:
    """(outputs, inputs) in float64: what the layer multiplies its inputs, windows or codes with."""
    weight = cast(Tensor, layer.weight).detach().double()
    return weight.T if isinstance(layer, nn.Embedding) else weight.flatten(1)


def svd(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """left (m, n), singular values (n,), right (n, k): left and right each carry the root of the values."""
    u, s, v = torch.linalg.svd(values.double(), full_matrices=False)
    return u * s.sqrt(), s, s.sqrt()[:, None] * v


def in_channels(layer: nn.Module, left: Tensor, right: Tensor, shift: Tensor | None = None) -> Factored:
    """Factors (outputs, rank) and (rank, inputs) in the place of `layer`; `shift` (outputs,) is added to its bias."""
    weight = cast(Tensor, layer.weight)
    bias = None if isinstance(layer, nn.Embedding) else layer.bias
    total = None if bias is None else cast(Tensor, bias).detach().double()
    if shift is not None:
        total = shift if total is None else total + shift
    rank, outputs = left.shape[1], len(left)
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Embedding):
        first = nn.Embedding(layer.num_embeddings, rank, padding_idx=layer.padding_idx)
        right = right.T
        second = nn.Linear(rank, outputs, bias=total is not None)
    elif isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, outputs, bias=total is not None)
    else:
        conv = cast(Any, layer)
        first = type(conv)(conv.in_channels, rank, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                           bias=False, padding_mode=conv.padding_mode)  # fmt: skip
        second = type(conv)(rank, outputs, 1, bias=total is not None)
    return _filled(first, right, second, left, total, weight)


def in_space(layer: nn.Conv2d, left: Tensor, right: Tensor) -> Factored:
    """Factors (inputs * height, rank) and (rank, outputs * width) in the place of a 2D convolution."""
    rank = left.shape[1]
    (high, wide), (down, across) = layer.kernel_size, layer.stride
    padding = layer.padding
    above, aside = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    first = nn.Conv2d(layer.in_channels, rank, (high, 1), (down, 1), above, (layer.dilation[0], 1), bias=False,
                      padding_mode=layer.padding_mode)  # fmt: skip
    second = nn.Conv2d(rank, layer.out_channels, (1, wide), (1, across), aside, (1, layer.dilation[1]),
                       bias=layer.bias is not None, padding_mode=layer.padding_mode)  # fmt: skip
    vertical = left.T.reshape(rank, layer.in_channels, high, 1)
    horizontal = right.reshape(rank, layer.out_channels, 1, wide).transpose(0, 1)
    bias = None if layer.bias is None else layer.bias.detach()
    return _filled(first, vertical, second, horizontal, bias, layer.weight)


def space_matrix(layer: nn.Conv2d) -> Tensor:
    """(inputs * height, outputs * width), float64: of which `in_space` takes factors."""
    weight = layer.weight.detach().double()
    return weight.permute(1, 2, 0, 3).reshape(weight.shape[1] * weight.shape[2], -1)


def _filled(
    first: nn.Module, right: Tensor, second: nn.Module, left: Tensor, bias: Tensor | None, like: Tensor
) -> Factored:
    """The two layers with these weights, of the dtype, device and trainability of `like`."""
    found = [(first, "weight", right), (second, "weight", left)]
    if bias is not None:
        found.append((second, "bias", bias))
    for layer, name, values in found:
        shape = cast(Tensor, getattr(layer, name)).shape
        held = values.reshape(shape).to(dtype=like.dtype, device=like.device).contiguous().clone()
        setattr(layer, name, nn.Parameter(held, requires_grad=like.requires_grad))
    return copy.deepcopy(Factored(first, second)).eval()
