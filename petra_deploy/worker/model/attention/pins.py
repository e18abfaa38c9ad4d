"""Pins: a module that takes its own inner width from its input goes on seeing that width.

    q = self.query(x).view(*x.shape[:2], self.heads, x.shape[-1] // self.heads)

Such code holds while the stream that comes in is as wide as all heads together. Once either is cut, a
Pin lets the module see, as the last size of its input, the width that its output projection reads. No
value changes and nothing is computed twice; the exported graph is that of the module written with its own width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_KEEPING = (F.layer_norm, F.rms_norm, F.dropout)  # what comes out is the input still


class Pin:
    """Forward hooks of a module. `readers` are the layers in it that read its input, `out` its output projection."""

    def __init__(self, readers: Sequence[str], out: str) -> None:
        self.readers, self.out = tuple(readers), out
        self._open: list[_Sizes | None] = []

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        width = _reads(module.get_submodule(self.out))
        sizes = {_reads(module.get_submodule(name)) for name in self.readers} - {width}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        inputs = [t for t in given if t.is_floating_point() and t.dim() > 1 and t.shape[-1] in sizes]
        self._open.append(_Sizes(inputs, width) if inputs else None)
        if (mode := self._open[-1]) is not None:
            mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        mode = self._open.pop()
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _reads(layer: nn.Module) -> int:
    """The width that a Linear layer reads, or the first one in what stands in its place (factors of low rank)."""
    return next(m for m in layer.modules() if isinstance(m, nn.Linear)).in_features


def pin(module: nn.Module, readers: Sequence[str], out: str) -> None:
    """Change `module` in place; the names are those of layers inside it."""
    if not pinned(module):
        hooks = Pin(readers, out)
        module.register_forward_pre_hook(hooks.enter, with_kwargs=True)
        module.register_forward_hook(hooks.leave, always_call=True)


def pinned(module: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), Pin) for hook in module._forward_pre_hooks.values())


class _Sizes(TorchFunctionMode):
    """Within, the last size of `inputs` reads as `width`."""

    def __init__(self, inputs: list[Tensor], width: int) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not args or not any(args[0] is tensor for tensor in self.inputs):
            return result
        if func in _KEEPING:
            self.inputs.append(result)
        elif func == Tensor.shape.__get__:  # type: ignore[attr-defined]
            return self._seen(result)
        elif func is Tensor.size:
            asked = args[1] if len(args) > 1 else kwargs.get("dim")
            if asked is None:
                return self._seen(result)
            if asked in (-1, args[0].dim() - 1):
                return self.width
        return result

    def _seen(self, sizes: Any) -> Any:
        return torch.Size((*sizes[:-1], self.width))
