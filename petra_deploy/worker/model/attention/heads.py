"""The heads of attention modules, and how they are cut: found by trying, whoever wrote the module.

    found = attention_heads(model, trial)
    found.heads[0].coupling        # width: its heads; places: rows of q, k and v, columns of out
    keep_heads(small, {found.heads[0]: [0, 2]})

How a forward pass splits its channels into heads is in its code, where we cannot look. So a guess is
made (which layers, how many heads, how they lie in the rows, which numbers in the module count them)
and tried: with one head cut away the output projection must answer exactly what it answers when that
head's columns in it are zero. What no guess explains is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule
from petra_deploy.worker.model.attention.pins import pin
from petra_deploy.worker.model.attention.windows import Window, windows
from petra_deploy.worker.model.surgery import Coupling, Place
from petra_deploy.worker.model.trial import Trial, same

COUNTS = re.compile(r"head|^h$|^nh$", re.IGNORECASE)
SIZES = re.compile(r"dim|size|width|channel|per", re.IGNORECASE)

REFUSAL = (
    "no number in it could be set so that it works with fewer heads: "
    "nothing tried gives what the model gives with one head silenced"
)


@dataclass(frozen=True)
class Count:
    """A number kept in a module that grows with its heads: `each` for every head."""

    module: str
    attribute: str
    each: int


@dataclass(frozen=True)
class Heads:
    coupling: Coupling  # named after the module that attends
    counts: tuple[Count, ...]
    layers: frozenset[str]  # those that make q, k and v, and the output projection
    pinned: bool  # whether the module reads its inner width off its input

    @property
    def name(self) -> str:
        return self.coupling.name


@dataclass(frozen=True)
class Found:
    heads: tuple[Heads, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # module -> reason


@dataclass(frozen=True)
class _Guess:
    heads: Heads
    key: tuple[object, ...]  # what is alike in modules of one kind


def attention_heads(model: nn.Module, trial: Trial) -> Found:
    """Of every attention module of two heads or more. `model` is the one that `trial` holds; it stays as it is."""
    found: list[Heads] = []
    refused: dict[str, Window] = {}
    taken: set[str] = set()
    known: list[tuple[object, ...]] = []
    guessed = sorted(windows(model, trial.feeds[0]), key=lambda window: -len(window.owner.split(".")))
    for window in guessed:  # the smallest owners first: what is read across several modules is seldom one attention
        if taken & window.layers or (found and not window.owner):
            continue
        guesses = sorted(_guesses(window), key=lambda guess: guess.key not in known)
        if (right := next((guess for guess in guesses if _holds(window, guess.heads)), None)) is not None:
            taken |= window.layers
            known.append(right.key)
            found.append(right.heads)
        elif any(COUNTS.search(count) and module == window.owner for module, count, _ in _numbers(window)):
            refused.setdefault(window.owner or window.out, window)
    names = [f"{heads.name}." for heads in found]
    mute = (n for n, w in refused.items() if not any(name.startswith(w.owner and f"{w.owner}.") for name in names))
    return Found(tuple(found), dict.fromkeys(mute, REFUSAL))


def keep_heads(model: nn.Module, kept: Mapping[Heads, Sequence[int]]) -> None:
    """Change `model` in place: of each attention module only the `kept` heads stay, in ascending order."""
    surgery.keep(model, {heads.coupling: stay for heads, stay in kept.items()})
    for heads, stay in kept.items():
        for count in heads.counts:
            setattr(submodule(model, count.module), count.attribute, count.each * len(stay))


def _holds(window: Window, heads: Heads) -> bool:
    """Whether cutting heads is the same as silencing them: all but one, and one alone."""
    width = heads.coupling.width
    for stay in ([h for h in range(width) if h != 1], [width - 1]):
        try:
            silent = window.run(lambda owner, stay=stay: _silence(owner, window, heads, stay))  # type: ignore[misc]
            cut = window.run(lambda owner, stay=stay: _cut(owner, window, heads, stay))  # type: ignore[misc]
        except Exception:  # the guess is wrong, and the user's forward says so in its own way
            return False
        if not same([silent], [cut], window.tolerance):
            return False
    return True


def _silence(owner: nn.Module, window: Window, heads: Heads, stay: Sequence[int]) -> None:
    out = owner.get_submodule(window.local(window.out))
    columns = next(place for place in heads.coupling.places if place.layer == window.out).positions
    weight = out.weight.detach().clone()  # type: ignore[operator]
    weight[:, [c for h, at in enumerate(columns) if h not in stay for c in at]] = 0
    out.weight = nn.Parameter(weight)


def _cut(owner: nn.Module, window: Window, heads: Heads, stay: Sequence[int]) -> None:
    places = tuple(Place(window.local(p.layer), p.side, p.positions, p.dim) for p in heads.coupling.places)
    counts = tuple(Count(window.local(c.module), c.attribute, c.each) for c in heads.counts)
    local = replace(heads, coupling=replace(heads.coupling, places=places), counts=counts)
    keep_heads(owner, {local: stay})
    if heads.pinned:
        pin(owner, window.readers, window.local(window.out))


def _guesses(window: Window) -> Iterator[_Guess]:
    """From the likeliest on: the names of numbers are heeded, but not believed."""
    numbers = _numbers(window)
    least = min(part for parts in window.parts for part in parts)
    named = [v for _, name, v in numbers if COUNTS.search(name) and not SIZES.search(name)]
    sizes = [least // v for _, name, v in numbers if COUNTS.search(name) and SIZES.search(name) and v <= least]
    others = [v for _, _, v in numbers]
    likely = [n for n in dict.fromkeys((*named, *sizes, *others)) if 1 < n <= least and least % n == 0]
    for n in likely[:4]:
        ways = list(dict.fromkeys((False, any(len(parts) > 1 for parts in window.parts))))
        extras = [(), extra] if (extra := _per_head(window, n)) else [()]
        choices = list(dict.fromkeys(_choices(window, n, numbers, least)))
        for (index, counts), more, pinned, joined in product(enumerate(choices), extras, (False, True), ways[::-1]):
            places = (
                *(Place(i, "out", _rows(rows, n, joined)) for i, rows in zip(window.ins, window.parts, strict=True)),
                Place(window.out, "in", _rows((window.width,), n, True)),
                *more,
            )  # fmt: skip
            coupling = Coupling(window.owner or window.out, n, places)
            yield _Guess(Heads(coupling, counts, window.layers, pinned), (n, index, len(more), pinned, joined))


def _rows(parts: tuple[int, ...], heads: int, by_part: bool) -> tuple[tuple[int, ...], ...]:
    """Of each head: q, k and v one after the other in the rows, or for every head its own q, k and v."""
    if not by_part:
        parts = (sum(parts),)
    starts = [sum(parts[:index]) for index in range(len(parts))]
    return tuple(
        tuple(start + row for start, part in zip(starts, parts, strict=True)
              for row in range(head * part // heads, (head + 1) * part // heads))
        for head in range(heads)
    )  # fmt: skip


def _choices(window: Window, n: int, numbers: list[tuple[str, str, int]], least: int) -> Iterator[tuple[Count, ...]]:
    """Which numbers follow the heads: counts and widths, counts alone, all that fit, none."""
    counted = {n, n * (window.width // least)}
    wide = {window.width, least, *(sum(parts) for parts in window.parts)}

    def those(*fits: bool) -> tuple[Count, ...]:
        return tuple(Count(m, a, v // n) for (m, a, v), fit in zip(numbers, fits, strict=True) if fit)

    named = [v in counted and bool(COUNTS.search(a)) and not SIZES.search(a) for _, a, v in numbers]
    widths = [v in wide and v % n == 0 for _, _, v in numbers]
    yield those(*(a or b for a, b in zip(named, widths, strict=True)))
    yield those(*named)
    yield those(*(b or v in counted for b, (_, _, v) in zip(widths, numbers, strict=True)))
    yield those(*widths)
    yield ()


def _numbers(window: Window) -> list[tuple[str, str, int]]:
    """(module, attribute, value) of the whole numbers that the owner and its parts keep, but for torch's own layers."""
    found = []
    for name, module in window.module.named_modules():
        if not type(module).__module__.startswith("torch.nn."):
            full = ".".join(part for part in (window.owner, name) if part)
            found += [(full, key, v) for key, v in vars(module).items() if type(v) is int and v > 1 and key[0] != "_"]
    return found


def _per_head(window: Window, n: int) -> tuple[Place, ...]:
    """Parameters, buffers and layers beside q, k, v and out that have one entry for each head."""
    positions = tuple((head,) for head in range(n))
    found: list[Place] = []
    for name, module in window.module.named_modules():
        full = ".".join(part for part in (window.owner, name) if part)
        if full in (*window.ins, window.out):
            continue
        if isinstance(module, nn.Linear | nn.Embedding):
            if (module.out_features if isinstance(module, nn.Linear) else module.embedding_dim) == n:
                found.append(Place(full, "out", positions))
        elif not type(module).__module__.startswith("torch.nn."):
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and n in tensor.shape:
                    found.append(Place(f"{full}.{key}" if full else key, "both", positions, tensor.shape.index(n)))
    return tuple(found)


def reads_width(window: Window) -> bool:
    """Whether the owner needs a Pin when its input gets narrower: only with one does it answer as it should."""
    layers = window.readers
    wide = window.module.get_submodule(layers[0]).in_features
    half = int(wide) // 2  # type: ignore[arg-type]
    sized = [name for name in layers if window.module.get_submodule(name).in_features == wide]

    def given(tensor: torch.Tensor, zero: bool) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-1] != wide:
            return tensor
        kept = tensor[..., :half]
        return torch.cat([kept, torch.zeros_like(tensor[..., half:])], -1) if zero else kept.contiguous()

    def narrow(owner: nn.Module, pinned: bool) -> None:
        surgery.select(owner, {(name, "in", None): torch.arange(half) for name in sized})
        if pinned:
            pin(owner, layers, window.local(window.out))

    def holds(pinned: bool) -> bool:
        try:
            found = window.run(lambda owner: narrow(owner, pinned), lambda t: given(t, zero=False))
        except Exception:
            return False
        return same([wanted], [found], window.tolerance)

    try:
        wanted = window.run(lambda _: None, lambda t: given(t, zero=True))
    except Exception:
        return False
    return half > 0 and not holds(pinned=False) and holds(pinned=True)
