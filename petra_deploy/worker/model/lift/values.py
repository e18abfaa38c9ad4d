"""What flows through a lifted graph: tensors, and sizes that stay plain Python numbers.

Sizes computed at run time (Shape, Gather, Concat, then Reshape) are kept as numbers and lists of
numbers, never as tensors: so torch.export sees symbols in them, and the batch stays dynamic. A
"plain" value is a number, or a list of numbers (one dimension); None is an input left out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Value = Any  # Tensor, a number (SymInt too), a list of numbers, or None

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
INTEGERS = frozenset((2, 3, 5, 6, 7))


class Unliftable(Exception):
    """Why a graph, or one operator of it, cannot become a module; the text is shown."""


def plain(value: Value) -> bool:
    return value is not None and not isinstance(value, Tensor)


def dtype(number: int) -> torch.dtype:
    """Of a number of ONNX's TensorProto.DataType."""
    if number not in DTYPES:
        raise Unliftable(f"element type {number}")
    return DTYPES[number]


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """`value` as a tensor: int64, float32 or bool, or of the type of `like`."""
    if isinstance(value, Tensor):
        return value
    kind, device = (like.dtype, like.device) if like is not None else (_kind(value), None)
    if not isinstance(value, list):
        return torch.scalar_tensor(value, dtype=kind, device=device)
    if all(isinstance(item, bool | int | float) for item in value):
        return torch.tensor(value, dtype=kind, device=device)
    return torch.stack([torch.scalar_tensor(item, dtype=kind, device=device) for item in value])


def _kind(value: Value) -> torch.dtype:
    first = (value[0] if value else 0) if isinstance(value, list) else value
    if isinstance(first, bool | torch.SymBool):
        return torch.bool
    return torch.float32 if isinstance(first, float | torch.SymFloat) else torch.int64


def numbers(value: Value, what: str) -> list[Any]:
    """A list of plain numbers. Raises Unliftable where they depend on the values of tensors."""
    if isinstance(value, Tensor):
        raise Unliftable(f"{what} computed from the values of a tensor")
    return value if isinstance(value, list) else [value]


def number(value: Value, what: str) -> Any:
    return numbers(value, what)[0]


def paired(on_plain: Callable[[Any, Any], Any], on_tensors: Callable[[Any, Any], Tensor]) -> Callable[..., Value]:
    """An operator of two operands, on sizes or on tensors; a number meets a tensor as it is."""

    def apply(_: dict[str, Any], a: Value, b: Value) -> Value:
        if plain(a) and plain(b):
            return broadcast(on_plain, a, b)
        if isinstance(a, list):
            a = tensor(a, b if _alike(a, b) else None)
        if isinstance(b, list):
            b = tensor(b, a if _alike(b, a) else None)
        return on_tensors(a, b)

    return apply


def _alike(values: list[Any], other: Value) -> bool:
    """Whether a list of numbers stands for the element type of `other`."""
    return isinstance(other, Tensor) and other.is_floating_point() == (_kind(values) is torch.float32)


def broadcast(function: Callable[[Any, Any], Any], a: Value, b: Value) -> Value:
    if not isinstance(a, list) and not isinstance(b, list):
        return function(a, b)
    left, right = (a if isinstance(a, list) else [a]), (b if isinstance(b, list) else [b])
    if len(left) != len(right):
        count = max(len(left), len(right))
        left, right = (left * count if len(left) == 1 else left), (right * count if len(right) == 1 else right)
    return [function(x, y) for x, y in zip(left, right, strict=True)]


def single(on_plain: Callable[[Any], Any], on_tensor: Callable[[Tensor], Tensor]) -> Callable[..., Value]:
    """An operator of one operand, on sizes or on a tensor."""

    def apply(_: dict[str, Any], value: Value) -> Value:
        if isinstance(value, Tensor):
            return on_tensor(value)
        return [on_plain(item) for item in value] if isinstance(value, list) else on_plain(value)

    return apply
