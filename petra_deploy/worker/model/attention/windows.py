"""Where attention may be: Linear layers called one after the other whose sizes could be q, k, v and out.

    for window in windows(model, feeds):
        window.ins, window.out          # ("blocks.0.qkv",), "blocks.0.proj"
        window.run(change)              # what `out` answers, in the owner alone, after `change(owner)`

A window is a guess by sizes: the rows of `ins` hold as many queries as `out` reads columns, and keys
and values of one size that divides it. Of a layer that was factored the second factor has the rows, the first the
columns. The owner is the smallest module around them that is called;
its first call is recorded, so that the guess is tried on it alone, in float64 where it permits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from petra_deploy.worker.model import surgery, trial
from petra_deploy.worker.model.adapter import submodule, submodules
from petra_deploy.worker.model.factored import Factored, outer, pairs
from petra_deploy.worker.model.trial import Tensors


@dataclass(frozen=True)
class Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Window:
    ins: tuple[str, ...]
    out: str
    parts: tuple[tuple[int, ...], ...]  # rows of the q, k and v in each of `ins`
    width: int  # columns of `out`
    owner: str
    module: nn.Module  # the owner; float64 from the first `run` on, where it permits
    call: Call
    tolerance: float = 1e-9
    _ready: bool = field(default=False, repr=False)

    @property
    def layers(self) -> frozenset[str]:
        return frozenset((*self.ins, self.out))

    @property
    def readers(self) -> list[str]:
        """What reads the input of `ins`, seen from the owner: the layers themselves, or their first factors."""
        factors = {f"{name}.second": f"{name}.first" for name, _ in pairs(self.module)}
        return [factors.get(name, name) for name in map(self.local, self.ins)]

    def local(self, name: str) -> str:
        """The name of a layer, seen from the owner."""
        return name[len(self.owner) + 1 :] if self.owner else name

    def run(self, change: Callable[[nn.Module], object], given: Callable[[Any], Any] = lambda x: x) -> Tensor:
        """What `out` answers after `change` to a copy of the owner, whose arguments pass through `given`.

        Raises whatever the owner's forward raises.
        """
        if not self._ready:
            self._widen()
        return self._answer(self.module, change, given)

    def _widen(self) -> None:
        self._ready = True
        wide = surgery.own(self.module).double()
        narrow, self.module = self.module, wide
        before = self.call
        self.call = Call(_mapped(_doubled, before.args), _mapped(_doubled, before.kwargs))
        try:
            self._answer(wide, lambda _: None, lambda x: x)
        except Exception:  # dtypes are written into its forward
            self.module, self.call, self.tolerance = narrow, before, 1e-4

    def _answer(self, module: nn.Module, change: Callable[[nn.Module], object], given: Callable[[Any], Any]) -> Tensor:
        copied = surgery.twin(module)
        change(copied)
        answers: list[Tensor] = []
        out = copied.get_submodule(self.local(self.out))
        out.register_forward_hook(lambda _, args, result: answers.append(result))
        trial.alone(copied, _mapped(given, self.call.args), _mapped(given, self.call.kwargs))
        return answers[0]


def windows(model: nn.Module, feeds: Tensors) -> Iterator[Window]:
    """In the order of calls; of those that share `out`, those with fewer layers first."""
    order, calls = _recorded(model, feeds)
    for index, last in enumerate(order):
        out = _first(model, last)
        width = submodule(model, out).in_features
        for count in (1, 2, 3):
            ins = tuple(outer(model, name) for name in order[index - count : index]) if index >= count else ()
            parts = _parts([int(submodule(model, name).out_features) for name in ins], int(width))  # type: ignore[arg-type]
            if parts is None or len({*ins, out}) <= count:
                continue
            owner = _common([name.split(".")[:-1] for name in (*ins, out)])
            while owner and ".".join(owner) not in calls:
                owner = owner[:-1]
            name = ".".join(owner)
            yield Window(ins, out, parts, int(width), name, submodule(model, name), calls[name])  # type: ignore[arg-type]


def _parts(rows: list[int], width: int) -> tuple[tuple[int, ...], ...] | None:
    """How many rows q, k and v have in each layer; None where these are no q, k and v for `width`."""
    if rows == [3 * width]:
        return ((width, width, width),)
    if len(rows) == 2 and sorted(rows) == [width, 2 * width]:
        return tuple((width,) if r == width else (width, width) for r in rows)
    if len(rows) == 3 and width in rows:
        others = sorted(rows)[:2]
        if others[0] == others[1] and width % others[0] == 0 and max(rows) == width:
            return tuple((r,) for r in rows)
    return None


def _common(paths: list[list[str]]) -> list[str]:
    """The longest beginning that all have."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return shared


def _first(model: nn.Module, name: str) -> str:
    """The layer that reads the input of the one called `name`: its first factor where it was factored."""
    return f"{name}.first" if isinstance(submodule(model, name), Factored) else name


def _recorded(model: nn.Module, feeds: Tensors) -> tuple[list[str], dict[str, Call]]:
    """Linear layers (two factors are one) in the order of calls, and each module's first call ("": the whole)."""
    order: list[str] = []
    calls: dict[str, Call] = {}
    hooks = []
    inside = tuple(f"{name}." for name, _ in pairs(model))
    for name, module in [("", getattr(model, "inner", model)), *submodules(model)]:

        def look(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            if name not in calls:
                calls[name] = Call(args, kwargs)
                factors = isinstance(module, Factored) and isinstance(module.first, nn.Linear)
                if factors or (isinstance(module, nn.Linear) and not name.startswith(inside)):
                    order.append(name)

        hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        trial.outputs(model, feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return order, calls


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`value` with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(change, item) for item in value)
    if type(value) is dict:
        return {key: _mapped(change, item) for key, item in value.items()}
    return value


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
