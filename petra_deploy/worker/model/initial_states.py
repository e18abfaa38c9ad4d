"""Parameters and buffers that a recurrent layer is given as its first state: they lose the units that it loses.

    found = initial_states(model, "rnn", feeds)     # (("h0", 2), ("c0", 2)): name and dimension along the units

Found by trying: a tensor that no layer of torch's owns, with as many entries along a dimension as the layer
has units, is changed at one of them, and the state that the layer is then given has changed in that unit alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from petra_deploy.worker.model import surgery, trial
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.trial import Tensors


def initial_states(model: nn.Module, name: str, feeds: Tensors) -> tuple[tuple[str, int], ...]:
    """(user's name of the tensor, dimension), each. `model` stays as it is."""
    width = int(submodule(model, name).hidden_size)  # type: ignore[arg-type]
    tensors = [t for t in _loose(model) if width in t[2].shape]
    if not tensors:
        return ()
    before = _given(model, name, feeds)
    found = []
    for path, owner, tensor in tensors:
        for dim in [d for d, size in enumerate(tensor.shape) if size == width]:
            if all(_reached(model, name, feeds, before, (path, owner, dim), unit) == {unit} for unit in (0, width - 1)):
                found.append((path, dim))
                break
    return tuple(found)


def _loose(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(name, owner's name, tensor) of each floating-point tensor that a module of the user's own holds."""
    inner = getattr(model, "inner", model)
    for owner, module in [("", inner), *submodules(model)]:
        if type(module).__module__.startswith("torch."):
            continue
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        yield from ((f"{owner}.{n}".strip("."), owner, t) for n, t in held if t.is_floating_point())


def _reached(
    model: nn.Module, name: str, feeds: Tensors, before: list[Tensor], place: tuple[str, str, int], unit: int
) -> set[int]:
    """The units of the layer's first state that change when the tensor does at `unit`."""
    path, owner, dim = place
    changed = surgery.twin(model)
    holder = submodule(changed, owner) if owner else getattr(changed, "inner", changed)
    last = path.rpartition(".")[2]
    tensor = getattr(holder, last)
    values = tensor.detach().clone()
    values.select(dim, unit).add_(3.0)
    setattr(holder, last, nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values)
    after = _given(changed, name, feeds)
    moved: set[int] = set()
    for a, b in zip(before, after, strict=False):
        if a.shape == b.shape:
            moved |= set((a != b).flatten(0, -2).any(0).nonzero().flatten().tolist())
    return moved


def _given(model: nn.Module, name: str, feeds: Tensors) -> list[Tensor]:
    """The state tensors that the layer gets in its first call; none where it starts from zeros."""
    seen: list[list[Tensor]] = []

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        flat = state if isinstance(state, tuple | list) else [state]
        seen.append([t.detach().clone() for t in flat if isinstance(t, Tensor)])

    hook = submodule(model, name).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            trial.outputs(model, feeds)
    finally:
        hook.remove()
    return seen[0] if seen else []
