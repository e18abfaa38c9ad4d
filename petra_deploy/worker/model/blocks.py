"""Blocks that can be taken out of a model: what goes in could just as well come out.

    found = removable(model, Trial(model, example))     # names, and why the others must stay
    take_out(model, ["stages.0.1"], example)            # in place: passed through from now on

A block is a child of an nn.Sequential, nn.ModuleList or nn.ModuleDict, or one of several like attributes of a
module (block1, block2: of one class). It has weights, and parts of its own or recurrent layers; one of its
inputs has the shape and dtype of its (first) output: residual blocks, encoder layers, stacked LSTMs. Outside of
such blocks a linear or convolutional layer of an nn.Sequential counts as one: the hidden layers of a perceptron.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn

from petra_deploy.worker.model import adapter, surgery, trial
from petra_deploy.worker.model.passes import watching
from petra_deploy.worker.model.trial import Tensors, Trial

_SINGLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Source = int | str  # which argument of a call: its position or its keyword


class PassThrough(nn.Module):
    """Stands where a block was: gives back one of its inputs, whatever else it is called with.

    `arity`: None where the block gave a tensor; otherwise the length of the tuple that it gave, of
    which all but the first are None.
    """

    def __init__(self, arity: int | None = None, source: Source = 0) -> None:
        super().__init__()
        self.arity = arity
        self.source = source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = self.change(args[self.source] if isinstance(self.source, int) else kwargs[self.source])
        return first if self.arity is None else (first, *[None] * (self.arity - 1))

    def change(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Blocks:
    names: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # name -> reason


def removable(model: nn.Module, tried: Trial) -> Blocks:
    """Those that the model runs without, one at a time, and all at once."""
    calls = _calls(model, tried.feeds[0])
    whole = [*_outermost(list(candidates(model)), calls), *_alone(model, calls)]
    refused: dict[str, str] = {}
    sound: list[str] = []
    for name in whole:
        reason = _breaks(model, [name], tried, calls)
        if reason is None:
            sound.append(name)
        else:
            refused[name] = reason
    if sound and (reason := _breaks(model, sound, tried, calls)) is not None:
        refused[sound[0]] = f"without any of the blocks {reason}"
        sound = sound[1:]
        if sound and _breaks(model, sound, tried, calls) is not None:
            return Blocks((), refused | dict.fromkeys(sound, "the model needs more than one of its blocks"))
    return Blocks(tuple(sound), refused)


def take_out(model: nn.Module, names: Sequence[str], example: Tensors) -> None:
    """Put a PassThrough in the place of each of the blocks. `example` is run once, to see what they give.

    Raises AttributeError for a name that the model does not have.
    """
    _exchange(model, {name: adapter.submodule(model, name) for name in names}, _calls(model, example))


def _exchange(model: nn.Module, blocks: dict[str, nn.Module], calls: "dict[str, _Call]") -> None:
    for name, block in blocks.items():
        known = calls.get(name)
        through = PassThrough(known.arity, 0 if known.source is None else known.source) if known else PassThrough()
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
    source: Source | None  # the argument that is like the first output, in every call; None: there is none
    arity: int | None


def _calls(model: nn.Module, example: Tensors) -> dict[str, _Call]:
    """What each candidate is called with and gives, seen in one forward pass."""
    found: dict[str, _Call] = {}
    with watching(model, [name for name, _ in (*candidates(model), *_single(model))]) as seen:
        trial.outputs(model, example)
    for name, calls in seen.items():
        sources = [_alike(args, kwargs, first_of(result)) for (args, kwargs), result in calls]
        result = calls[0][1]
        source = sources[0] if len(set(sources)) == 1 else None
        found[name] = _Call(source, len(result) if isinstance(result, tuple) else None)
    return found


def first_of(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) and result else result


def _alike(args: Any, kwargs: Any, first: Any) -> Source | None:
    """The first argument of the shape and dtype of `first`."""
    for source, value in [*enumerate(args), *kwargs.items()]:
        if (
            isinstance(value, Tensor)
            and isinstance(first, Tensor)
            and (value.shape, value.dtype) == (first.shape, first.dtype)
        ):
            return cast(Source, source)
    return None


def _single(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear and convolutional layers of an nn.Sequential."""
    inner = getattr(model, "inner", model)
    for name, owner in [("", inner), *adapter.submodules(model)]:
        if isinstance(owner, nn.Sequential):
            for child, module in owner.named_children():
                if isinstance(module, _SINGLE):
                    yield f"{name}.{child}" if name else child, module


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of containers, and like attributes of a module, that have weights and parts."""
    inner = getattr(model, "inner", model)
    for name, owner in [("", inner), *adapter.submodules(model)]:
        if isinstance(owner, PassThrough):
            continue
        parts = [(child, module) for child, module in owner.named_children() if _has_depth(module)]
        kinds = Counter(_kind(module) for _, module in parts)
        for child, module in parts:
            if isinstance(owner, CONTAINERS) or kinds[_kind(module)] > 1:
                yield f"{name}.{child}" if name else child, module


def _has_depth(module: nn.Module) -> bool:
    """Weights, and either parts or a recurrence: more than one layer's work."""
    if next(module.parameters(), None) is None or isinstance(module, nn.ModuleList | nn.ModuleDict | PassThrough):
        return False
    return next(module.children(), None) is not None or isinstance(module, nn.RNNBase)


def _kind(module: nn.Module) -> object:
    """Its class; of an nn.Sequential also the classes of its parts."""
    return type(module), frozenset(type(m) for m in module) if isinstance(module, nn.Sequential) else None


def _alone(model: nn.Module, calls: dict[str, _Call]) -> list[str]:
    """The single layers that give what they get and are in no block."""
    blocks = [name for name, _ in candidates(model) if name in calls and calls[name].source is not None]
    layers = [name for name, _ in _single(model) if name in calls and calls[name].source is not None]
    return [name for name in layers if not any(name.startswith(f"{block}.") for block in blocks)]


def _outermost(found: list[tuple[str, nn.Module]], calls: dict[str, _Call]) -> list[str]:
    """Of nested candidates one stays: the parts of a plain Sequential, but a user's block as a whole."""
    alike = [(name, module) for name, module in found if name in calls and calls[name].source is not None]
    whole = [name for name, module in alike if not isinstance(module, nn.Sequential)]
    kept = [name for name, _ in alike if not any(name.startswith(f"{outer}.") for outer in whole)]
    plain = {name for name, module in alike if isinstance(module, nn.Sequential)}
    return [name for name in kept if name not in plain or not any(inner.startswith(f"{name}.") for inner in kept)]


def _breaks(model: nn.Module, names: Sequence[str], tried: Trial, calls: dict[str, _Call]) -> str | None:
    changed = surgery.twin(model)
    _exchange(changed, {name: adapter.submodule(changed, name) for name in names}, calls)
    return tried.breaks(changed)
