"""Blocks that can be taken out of a model: what goes in could just as well come out.

    found = removable(model, Trial(model, example))     # names, and why the others must stay
    take_out(model, ["stages.0.1"], example)            # in place: passed through from now on

A block is a child of an nn.Sequential or nn.ModuleList, has weights and parts of its own, and its
first input has the shape and dtype of its (first) output: residual blocks, encoder layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from petra_deploy.worker.model import adapter, surgery, trial
from petra_deploy.worker.model.trial import Tensors, Trial

CONTAINERS = (nn.Sequential, nn.ModuleList)


class PassThrough(nn.Module):
    """Stands where a block was: gives back its first input, whatever else it is called with.

    `arity`: None where the block gave a tensor; otherwise the length of the tuple that it gave, of
    which all but the first are None.
    """

    def __init__(self, arity: int | None = None) -> None:
        super().__init__()
        self.arity = arity

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        return first if self.arity is None else (first, *[None] * (self.arity - 1))


@dataclass(frozen=True)
class Blocks:
    names: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # name -> reason


def removable(model: nn.Module, tried: Trial) -> Blocks:
    """Those that the model runs without, one at a time, and all at once."""
    candidates = _outermost(list(_candidates(model)), model, _calls(model, tried.feeds[0]))
    refused: dict[str, str] = {}
    sound: list[str] = []
    for name in candidates:
        reason = _breaks(model, [name], tried)
        if reason is None:
            sound.append(name)
        else:
            refused[name] = reason
    if sound and (reason := _breaks(model, sound, tried)) is not None:
        refused[sound[0]] = f"without any of the blocks {reason}"
        sound = sound[1:]
        if sound and _breaks(model, sound, tried) is not None:
            return Blocks((), refused | dict.fromkeys(sound, "the model needs more than one of its blocks"))
    return Blocks(tuple(sound), refused)


def take_out(model: nn.Module, names: Sequence[str], example: Tensors) -> None:
    """Put a PassThrough in the place of each of the blocks. `example` is run once, to see what they give.

    Raises AttributeError for a name that the model does not have.
    """
    blocks = {name: adapter.submodule(model, name) for name in names}
    calls = _calls(model, example)
    for name, block in blocks.items():
        known = calls.get(name)
        through = PassThrough(known.arity if known else None)
        encoder = adapter.submodule(model, name.rpartition(".")[0].rpartition(".")[0])
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False  # its shortcut reads the weights of the first layer
            through.self_attn = SimpleNamespace(batch_first=_batch_first(block))  # type: ignore[assignment]
        adapter.replace(model, name, through)


def gone(model: nn.Module, name: str) -> bool:
    """Whether the layer called `name` was in a block that has been taken out, or was one."""
    found: nn.Module = getattr(model, "inner", model)
    for part in name.split("."):
        if isinstance(found, PassThrough):
            return True
        child = getattr(found, part, None)
        if not isinstance(child, nn.Module):
            return False
        found = child
    return isinstance(found, PassThrough)


def _batch_first(layer: nn.Module) -> bool:
    return bool(getattr(getattr(layer, "self_attn", None), "batch_first", False))


@dataclass
class _Call:
    same: bool  # first input and first output are alike, in every call
    arity: int | None


def _calls(model: nn.Module, example: Tensors) -> dict[str, _Call]:
    """What each candidate is called with and gives, seen in one forward pass."""
    seen: dict[str, _Call] = {}
    hooks = []
    for name, module in _candidates(model):

        def look(_: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
            source = args[0] if args else next(iter(kwargs.values()), None)
            first = result[0] if isinstance(result, tuple) and result else result
            alike = (
                isinstance(source, Tensor)
                and isinstance(first, Tensor)
                and source.shape == first.shape
                and source.dtype == first.dtype
            )
            before = seen.get(name)
            arity = len(result) if isinstance(result, tuple) else None
            seen[name] = _Call(alike and (before is None or before.same), arity)

        hooks.append(module.register_forward_hook(look, with_kwargs=True))
    try:
        trial.outputs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of containers that have weights and parts."""
    for name, container in [("", getattr(model, "inner", model)), *adapter.submodules(model)]:
        if not isinstance(container, CONTAINERS):
            continue
        for child, module in container.named_children():
            has_weights = next(module.parameters(), None) is not None
            if has_weights and next(module.children(), None) is not None and not isinstance(module, nn.ModuleList):
                yield f"{name}.{child}" if name else child, module


def _outermost(found: list[tuple[str, nn.Module]], model: nn.Module, calls: dict[str, _Call]) -> list[str]:
    """Of nested candidates one stays: the parts of a plain Sequential, but a user's block as a whole."""
    alike = [(name, module) for name, module in found if name in calls and calls[name].same]
    whole = [name for name, module in alike if not isinstance(module, nn.Sequential)]
    kept = [name for name, _ in alike if not any(name.startswith(f"{outer}.") for outer in whole)]
    plain = {name for name, module in alike if isinstance(module, nn.Sequential)}
    return [name for name in kept if name not in plain or not any(inner.startswith(f"{name}.") for inner in kept)]


def _breaks(model: nn.Module, names: Sequence[str], tried: Trial) -> str | None:
    changed = surgery.twin(model)
    take_out(changed, names, tried.feeds[0])
    return tried.breaks(changed)
