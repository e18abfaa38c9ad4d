"""Prompts: trained tokens that stand before those which an encoder's layers see, and are taken off after the last.

    found, refused = encoders(Trial(model, example))
    install(model, found[0], tokens=8, example)         # in place; the parameter is `prompts` of the first layer
    prompted = parameter(model, found[0])               # its name, as named_parameters() gives it

An encoder is a run of like layers in one nn.Sequential or nn.ModuleList, each of which takes and gives
(rows, tokens, width), or (tokens, rows, width). What else the layers take with an entry for each
token (a padding mask) gets entries for the prompts, of the value with which they have an effect. All
of it is found by trying. Hooks do it, so every layer keeps its name; an export folds them in.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from petra_deploy.worker.model import adapter, surgery, trial
from petra_deploy.worker.model.blocks import CONTAINERS, PassThrough
from petra_deploy.worker.model.trial import Tensors, Trial
from petra_deploy.worker.quiet import cause

PARAMETER = "prompts"
_TRIED = 2  # tokens put in when an encoder is tried
_VISIBLE = {"bool": (True, False), "int": (1, 0), "float": (0.0, 1.0)}  # values of a mask, the likelier first


@dataclass(frozen=True)
class Beside:
    """Something a layer takes beside the tokens, with an entry for each of them along `axis`."""

    key: int | str  # position or name of the argument
    axis: int
    kind: str  # of its values: "bool", "int" or "float"
    value: float | bool = 0.0  # for prompts


@dataclass(frozen=True)
class Encoder:
    name: str  # of the container, the user's own
    layers: tuple[str, ...]
    axis: int  # of the tokens: 1, or 0 where rows come second
    length: int  # tokens of the example
    width: int
    beside: tuple[tuple[Beside, ...], ...] = field(default=())  # of each layer


class Enter:
    """Before a layer: prompts in front of the tokens (at the first), entries for them in masks."""

    def __init__(self, tokens: int, axis: int, beside: Sequence[Beside], first: bool) -> None:
        self.tokens, self.axis, self.beside, self.first = tokens, axis, tuple(beside), first

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, named = list(args), dict(kwargs)
        if self.first:
            x = given[0] if given else next(iter(named.values()))
            prompts: Tensor = getattr(layer, PARAMETER).to(x.dtype).unsqueeze(1 - self.axis)
            shape = [-1, x.shape[1], -1] if self.axis == 0 else [x.shape[0], -1, -1]
            x = torch.cat([prompts.expand(shape), x], self.axis)
            if given:
                given[0] = x
            else:
                named[next(iter(named))] = x
        for each in self.beside:
            store: Any = given if isinstance(each.key, int) else named
            mask = store[each.key]
            shape = list(mask.shape)
            shape[each.axis] = self.tokens
            store[each.key] = torch.cat([mask.new_full(shape, each.value), mask], each.axis)
        return tuple(given), named


class Leave:
    """After the last layer: without the prompts."""

    def __init__(self, tokens: int, axis: int) -> None:
        self.tokens, self.axis = tokens, axis

    def __call__(self, layer: nn.Module, args: Any, result: Any) -> Any:
        first = result[0] if isinstance(result, tuple) else result
        first = first[self.tokens :] if self.axis == 0 else first[:, self.tokens :]
        return (first, *result[1:]) if isinstance(result, tuple) else first


def encoders(tried: Trial) -> tuple[tuple[Encoder, ...], dict[str, str]]:
    """Those in which prompts run, keep the outputs' shapes and have an effect; why others do not."""
    found: list[Encoder] = []
    refused: dict[str, str] = {}
    for name, layers in _runs(tried.model):
        if any(name.startswith(f"{other.name}.") or not other.name for other in found):
            continue
        looked = _look(tried, name, layers)
        if isinstance(looked, Encoder):
            looked = _effective(tried, looked)
        if isinstance(looked, Encoder):
            found.append(looked)
        elif looked:
            refused[name or "the model"] = looked
    return tuple(found), refused


def install(model: nn.Module, encoder: Encoder, tokens: int, example: Tensors, seed: int = 0) -> None:
    """Put `tokens` prompts into `model`, in place: at first copies of tokens that the example's rows have there.

    (So do Lester, Al-Rfou and Constant, arXiv 2104.08691: prompts begin as words.)
    """
    first, last = (adapter.submodule(model, encoder.layers[index]) for index in (0, -1))
    seen = _inputs(model, encoder.layers[0], example)
    words = seen.movedim(encoder.axis, 0).flatten(0, 1)
    chosen = torch.randint(len(words), (tokens,), generator=torch.Generator().manual_seed(seed))
    first.register_parameter(PARAMETER, nn.Parameter(words[chosen].clone()))
    for index, name in enumerate(encoder.layers):
        enter = Enter(tokens, encoder.axis, encoder.beside[index], index == 0)
        layer = adapter.submodule(model, name)
        layer.register_forward_pre_hook(
            enter, with_kwargs=True, prepend=True
        )  # a Pin then sees the tokens with prompts
    last.register_forward_hook(Leave(tokens, encoder.axis))
    owner = adapter.submodule(model, encoder.name.rpartition(".")[0]) if "." in encoder.name else _inner(model)
    if isinstance(owner, nn.TransformerEncoder):
        owner.use_nested_tensor = False  # its shortcut packs the tokens before the layers see them


def parameter(model: nn.Module, encoder: Encoder) -> str:
    prompts = getattr(adapter.submodule(model, encoder.layers[0]), PARAMETER)
    return next(name for name, p in model.named_parameters() if p is prompts)


def _inner(model: nn.Module) -> nn.Module:
    found: nn.Module = getattr(model, "inner", model)
    return found


def _runs(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """(container, its layers): children with parts of their own, the passed-through ones left out."""
    for name, container in [("", _inner(model)), *adapter.submodules(model)]:
        if isinstance(container, CONTAINERS):
            layers = [
                f"{name}.{child}" if name else child
                for child, module in container.named_children()
                if not isinstance(module, PassThrough) and next(module.children(), None) is not None
            ]
            if layers:
                yield name, layers


def _look(tried: Trial, name: str, layers: Sequence[str]) -> Encoder | str:
    """The encoder as its layers are called, or why it is none; "" where it is nothing like one."""
    if hasattr(adapter.submodule(tried.model, layers[0]), PARAMETER):
        return "it has prompts already"
    calls = [_calls(tried.model, layers, feeds) for feeds in tried.feeds]
    shapes = []
    for seen in calls:
        if [each[0] for each in seen] != list(layers):
            return ""  # not each once, in this order
        inputs = [(given[0] if given else next(iter(named.values()), None)) for _, given, named, _ in seen]
        outputs = [result[0] if isinstance(result, tuple) and result else result for *_, result in seen]
        tensors = [x for x in (*inputs, *outputs) if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point()]
        if len(tensors) < 2 * len(layers) or len({x.shape for x in tensors}) > 1:
            return ""
        shapes.append(tuple(tensors[0].shape))
    rows = [next(len(t) for t in feeds if t.ndim) for feeds in tried.feeds]
    axis = next((1 - a for a in (0, 1) if all(shape[a] == n for shape, n in zip(shapes, rows, strict=True))), None)
    if axis is None:
        return "neither of the first two dimensions of its layers' inputs is that of the rows"
    length = shapes[-1][axis]
    beside = []
    for _, given, named, _ in calls[-1]:
        found = _beside(given, named, length, rows[-1])
        if isinstance(found, str):
            return found
        beside.append(found)
    return Encoder(name, tuple(layers), axis, length, shapes[-1][2], tuple(beside))


def _beside(given: Sequence[Any], named: Mapping[str, Any], length: int, rows: int) -> tuple[Beside, ...] | str:
    """What has an entry for each token; a sentence where something has two."""
    found = []
    others: list[tuple[int | str, Any]] = list(enumerate(given))
    for key, value in [*others, *named.items()][1:]:
        if not isinstance(value, Tensor):
            continue
        axes = [a for a, size in enumerate(value.shape) if size == length and (a or value.shape[0] != rows)]
        if len(axes) > 1:
            return "its layers take a mask of tokens by tokens, in which the place of prompts is not known"
        if axes:
            kind = "bool" if value.dtype == torch.bool else "float" if value.is_floating_point() else "int"
            found.append(Beside(key, axes[0], kind))
    return tuple(found)


def _effective(tried: Trial, encoder: Encoder) -> Encoder | str:
    """With the values of masks under which other prompts give other outputs, or why there are none."""
    keys = list(dict.fromkeys((each.key, each.kind) for layer in encoder.beside for each in layer))
    reason: str | None = "the model's outputs do not depend on prompts there"
    for values in itertools.product(*(_VISIBLE[kind] for _, kind in keys)):
        chosen = dict(zip((key for key, _ in keys), values, strict=True))
        beside = tuple(tuple(replace(e, value=chosen[e.key]) for e in layer) for layer in encoder.beside)
        attempt = replace(encoder, beside=beside)
        reason = _inert(tried, attempt)
        if reason is None:
            return attempt
    return str(reason)


def _inert(tried: Trial, encoder: Encoder) -> str | None:
    changed = surgery.own(surgery.twin(tried.model))
    try:
        install(changed, encoder, _TRIED, tried.feeds[0])
        if reason := tried.breaks(changed):
            return f"with prompts {reason}"
        before = trial.outputs(changed, tried.feeds[-1])
        prompts = getattr(adapter.submodule(changed, encoder.layers[0]), PARAMETER)
        with torch.no_grad():
            prompts.copy_(prompts.flip(1) + prompts.std())
        after = trial.outputs(changed, tried.feeds[-1])
    except Exception as error:  # the user's forward
        return f"with prompts the forward pass fails ({cause(error)})"
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.is_floating_point()]
    moved = [(a - b).abs().flatten(1).amax(1) > 1e-6 * a.abs().max() for a, b in pairs if a.ndim]
    if not moved or not torch.stack(moved).any(0).all():
        return "the model's outputs do not depend on prompts there"
    return None if all(bool(t.isfinite().all()) for t in after) else "with prompts the outputs are no numbers"


def _calls(model: nn.Module, layers: Sequence[str], feeds: Tensors) -> list[tuple[str, Any, Any, Any]]:
    """(layer, arguments, named arguments, result) of each call, in order."""
    seen: list[tuple[str, Any, Any, Any]] = []
    hooks = []
    for name in layers:

        def look(_: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
            seen.append((name, args, kwargs, result))

        hooks.append(adapter.submodule(model, name).register_forward_hook(look, with_kwargs=True))
    try:
        trial.outputs(model, feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _inputs(model: nn.Module, layer: str, example: Tensors) -> Tensor:
    [(_, given, named, _)] = _calls(model, [layer], example)
    found: Tensor = given[0] if given else next(iter(named.values()))
    return found.detach()
