"""Make fresh torch.nn layers of what a pickle says about them.

A pickled module's state can shadow `forward`, plant hooks, or hold objects of other kinds. So
none of it is used as it is: each layer is a new instance of a class from the list in `layers.py`,
and takes over only attributes that its own constructor sets, if they are plain values.
"""

import dis
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.layers import BY_NAME, FUNCTIONS
from petra_deploy.worker.workload.recorded import Recorded

_HINT = (
    "save its weights with torch.save(model.state_dict(), ...) and give the architecture as --model file.py:function"
)
_REMADE = frozenset(("_flat_weights", "_flat_weight_refs"))  # RNNs make these of their parameters
_MOST_LAYERS = 100_000


def rebuild(recorded: Recorded, name: str) -> nn.Module:
    """A fresh module. Shared layers and shared parameters stay shared.

    Raises Problem("input") where the state holds more than layers, tensors and plain values.
    """
    return _Rebuilder(name).module(recorded, "")


class _Rebuilder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.modules: dict[int, nn.Module | None] = {}  # None: being made
        self.parameters: dict[int, nn.Parameter] = {}

    def module(self, recorded: Recorded, where: str) -> nn.Module:
        if id(recorded) in self.modules:
            made = self.modules[id(recorded)]
            if made is None:
                raise self.refuse(where, "it contains itself")
            return made
        if len(self.modules) > _MOST_LAYERS or where.count(".") > 200:
            raise self.refuse(where, "it has too many layers")
        self.modules[id(recorded)] = None
        layer = BY_NAME.get(recorded.name)
        if layer is None:
            raise self.refuse(where, f"{recorded.name} is not a plain torch.nn layer")
        if not isinstance(recorded.state, dict):
            raise self.refuse(where, "its state is not a dict")
        fresh: nn.Module = layer.__new__(layer)
        nn.Module.__init__(fresh)
        state = dict(fresh.__dict__)
        known = _attributes(layer)
        for key, value in recorded.state.items():
            self._take(layer, known, state, str(key), value, where)
        if "_flat_weights_names" in state:
            state["_flat_weights"] = [state["_parameters"].get(weight) for weight in state["_flat_weights_names"]]
        try:
            fresh.__setstate__(state)  # type: ignore[no-untyped-call]
        except Exception:  # torch's own code on a state that lacks what it needs
            raise self.refuse(where, f"its state does not fit a {layer.__name__} of this PyTorch") from None
        self.modules[id(recorded)] = fresh
        return fresh

    def _take(
        self, layer: type[nn.Module], known: frozenset[str], state: dict[str, Any], key: str, value: Any, where: str
    ) -> None:
        place = f"{where}.{key}".lstrip(".")
        if key == "_modules":
            state[key] = {n: self._child(v, f"{where}.{n}".lstrip(".")) for n, v in _items(value, self, place)}
        elif key == "_parameters":
            state[key] = {n: self._parameter(v, f"{where}.{n}") for n, v in _items(value, self, place)}
        elif key == "_buffers":
            state[key] = {n: self._buffer(v, f"{where}.{n}") for n, v in _items(value, self, place)}
        elif key == "_non_persistent_buffers_set":
            state[key] = {str(n) for n in value} if isinstance(value, set) else set()
        elif key == "training":
            state[key] = bool(value is True)
        elif key in state:  # hooks and other tables of nn.Module
            if value:
                raise self.refuse(where, f"it carries {key.strip('_').replace('_', ' ')}")
        elif callable(getattr(layer, key, None)) or key.startswith("__"):
            raise self.refuse(where, f"its state replaces the method {key}")
        elif key in _REMADE or key not in known:
            if isinstance(value, Recorded) and value.name not in BY_NAME:
                raise self.refuse(where, f"its attribute {key} is a {value.name}")
        else:
            state[key] = self._plain(value, place, key)

    def _child(self, value: Any, where: str) -> nn.Module | None:
        if value is None:
            return None
        if not isinstance(value, Recorded):
            raise self.refuse(where, "a submodule is not a layer")
        return self.module(value, where)

    def _parameter(self, value: Any, where: str) -> nn.Parameter | None:
        if value is None:
            return None
        if not isinstance(value, torch.Tensor):
            raise self.refuse(where, "a parameter is not a tensor")
        if id(value) not in self.parameters:
            data = value.detach().as_subclass(torch.Tensor)
            float_like = data.is_floating_point() or data.is_complex()
            self.parameters[id(value)] = nn.Parameter(data, requires_grad=bool(value.requires_grad and float_like))
        return self.parameters[id(value)]

    def _buffer(self, value: Any, where: str) -> torch.Tensor | None:
        if value is None:
            return None
        if not isinstance(value, torch.Tensor):
            raise self.refuse(where, "a buffer is not a tensor")
        return value.detach().as_subclass(torch.Tensor)

    def _plain(self, value: Any, where: str, key: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, torch.Size | tuple):
            return tuple(self._plain(item, where, key) for item in value)
        if type(value) is list:
            return [self._plain(item, where, key) for item in value]
        if type(value) in (dict, set) and not value:
            return value
        if key == "activation" and isinstance(value, type) and issubclass(value, Recorded) and value.name in FUNCTIONS:
            return FUNCTIONS[value.name]
        kind = value.name if isinstance(value, Recorded) else type(value).__name__
        raise self.refuse(where, f"it is a {kind}")

    def refuse(self, where: str, why: str) -> Problem:
        return Problem("input", f"{self.file} is not a plain torch.nn model: at {where or 'its top'}, {why}", _HINT)


def _items(value: Any, rebuilder: _Rebuilder, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise rebuilder.refuse(where, "it is not a dict")
    names = [(str(key), item) for key, item in value.items()]
    if any(not key or "." in key for key, _ in names):
        raise rebuilder.refuse(where, "a name has a dot in it")
    return names


def _attributes(layer: type[nn.Module]) -> frozenset[str]:
    """Names that the constructors of a layer set on `self`."""
    names: set[str] = set()
    for base in layer.__mro__:
        if base is nn.Module:
            break
        for method in ("__init__", "__setstate__"):
            if code := getattr(base.__dict__.get(method), "__code__", None):
                names |= {str(i.argval) for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
        names |= set(getattr(base, "__constants__", ()))
    return frozenset(names)
