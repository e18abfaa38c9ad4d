"""One calling convention for every user's module: positional tensors in, a tuple of tensors out.

    model = Adapter(module, names=("ids", "mask"), call="kwargs")
    outputs = model(ids, mask)              # a tuple, whatever the module returns

Users' modules take keyword arguments, a dict, or several positional ones, and return a tensor, a
tuple or a dict. Everything after loading sees only this wrapper. Names of submodules shown to the
user, or written into a strategy, are the user's own: use `submodules`, `submodule`, `replace`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

Call = Literal["args", "kwargs", "dict"]
_PREFIX = "inner."


class Adapter(torch.nn.Module):
    """`names` are the inputs in order; `call` is how the module inside wants them."""

    def __init__(self, inner: torch.nn.Module, names: Sequence[str], call: Call = "args") -> None:
        super().__init__()
        self.inner = inner
        self.names = tuple(names)
        self.call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for _, tensor in self.named_outputs(*tensors))

    def named_outputs(self, *tensors: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) of each output; see `flatten`."""
        if self.call == "args":
            outputs = self.inner(*tensors)
        elif self.call == "kwargs":
            outputs = self.inner(**dict(zip(self.names, tensors, strict=True)))
        else:
            outputs = self.inner(dict(zip(self.names, tensors, strict=True)))
        return flatten(outputs)


def flatten(outputs: Any, name: str = "output") -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) for each tensor in a tensor, tuple, list or dict, nested too; None left out.

    A single tensor is "output"; those of a dict have their keys, those of a tuple "output_0"...
    Raises TypeError for anything else.
    """
    if isinstance(outputs, torch.Tensor):
        return [(name, outputs)]
    if isinstance(outputs, Mapping):
        prefix = "" if name == "output" else f"{name}_"
        return [pair for key, value in outputs.items() for pair in flatten(value, f"{prefix}{key}")]
    if isinstance(outputs, list | tuple):
        if len(outputs) == 1:
            return flatten(outputs[0], name)
        return [pair for i, value in enumerate(outputs) for pair in flatten(value, f"{name}_{i}")]
    if outputs is None:
        return []
    raise TypeError(f"the model returns a {type(outputs).__name__}; tensors, tuples, lists and dicts are supported")


def submodules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """named_modules() with the user's own names: the wrapper's prefix is left out."""
    inner = model.inner if isinstance(model, Adapter) else model
    for name, module in inner.named_modules():
        if name:
            yield name, module


def submodule(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The submodule with the user's own name. Raises AttributeError when there is none."""
    return (model.inner if isinstance(model, Adapter) else model).get_submodule(name)


def replace(model: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
    """Put `new` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    owner = submodule(model, parent) if parent else (model.inner if isinstance(model, Adapter) else model)
    setattr(owner, child, new)
