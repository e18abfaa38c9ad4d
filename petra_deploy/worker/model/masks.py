"""Weights that stay zero: where each may be other than zero is kept beside it, and training holds to that.

    put(layer, "weight", kept)      # zeroes the rest, and remembers `kept` in a buffer
    watch(optimizer, model)         # from now on each step of the optimizer ends with hold(model)
    hold(model)                     # by hand, after weights were merged or loaded

The buffers are in no state_dict and in no exported graph; copies of the module and its pickles have them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem

_KEPT = "_petra_kept"


def put(layer: nn.Module, name: str, kept: Tensor) -> None:
    """Set the parameter `name` of `layer` to zero where `kept` (bool, of its shape) is False, for good."""
    weight = layer.get_parameter(name)
    remember(layer, name, kept)
    setattr(layer, name, nn.Parameter(weight.detach() * kept, requires_grad=weight.requires_grad))


def remember(layer: nn.Module, name: str, kept: Tensor) -> None:
    """Let `hold` keep the parameter `name` of `layer` at zero where `kept` is False; it is not changed now."""
    layer.register_buffer(f"{name}{_KEPT}", kept, persistent=False)


def held(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, parameter, mask) of each masked weight; those that a parametrization computes are passed over.

    Raises Problem("unsupported") where a layer was cut after its weights were masked.
    """
    for path, layer in model.named_modules():
        for name, mask in layer.named_buffers(recurse=False):
            weight = layer._parameters.get(name.removesuffix(_KEPT)) if name.endswith(_KEPT) else None
            if weight is None:
                continue
            if weight.shape != mask.shape:
                raise Problem("unsupported", f"{path} was cut after its weights were made sparse",
                              "put sparsify behind the steps that cut")  # fmt: skip
            yield f"{path}.{name.removesuffix(_KEPT)}", weight, mask


def hold(model: nn.Module) -> None:
    """Set what is masked to zero again, in place."""
    with torch.no_grad():
        for _, weight, mask in held(model):
            weight.mul_(mask)


def watch(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let `optimizer` hold to the masks of `model`; nothing where it has none."""
    if any(True for _ in held(model)):
        optimizer.register_step_post_hook(lambda *_: hold(model))
