"""Operators that read and change shapes, and that pick, join and repeat elements."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from petra_deploy.worker.model.lift.values import Unliftable, Value, number, numbers, plain, tensor

Attributes = dict[str, Any]


def _shape(attributes: Attributes, x: Value) -> list[Any]:
    sizes = list(x.shape) if isinstance(x, Tensor) else [len(x)] if isinstance(x, list) else []
    return sizes[slice(attributes.get("start", 0), attributes.get("end"))]


def _size(_: Attributes, x: Value) -> Any:
    return math.prod(_shape({}, x))


def _reshape(attributes: Attributes, x: Value, target: Value) -> Value:
    """`plan`: how each size follows from the input's, where the builder found that out (lift/reshape.py)."""
    sizes = numbers(target, "a shape is")
    if plain(x):
        flat = x if isinstance(x, list) else [x]
        if len(sizes) == 1:
            return flat
        if not sizes:
            return flat[0]
        return tensor(flat).reshape(sizes)
    if not attributes.get("allowzero"):
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    plan = attributes.get("plan") or [None] * len(sizes)
    return x.reshape([size if part is None else part(x.shape) for size, part in zip(sizes, plan, strict=True)])


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, math.prod(x.shape[axis:]))


def _squeeze(attributes: Attributes, x: Value, axes: Value = None) -> Value:
    if plain(x):
        return x[0] if isinstance(x, list) else x
    chosen = attributes.get("axes") if axes is None else numbers(axes, "axes are")
    if chosen is None:
        return x.squeeze()
    for axis in sorted((a % x.dim() for a in chosen), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(attributes: Attributes, x: Value, axes: Value = None) -> Value:
    chosen = attributes["axes"] if axes is None else numbers(axes, "axes are")
    if plain(x) and not isinstance(x, list) and list(chosen) in ([0], [-1]):
        return [x]
    x = tensor(x)
    rank = x.dim() + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm") or tuple(reversed(range(x.dim()))))


def _concat(attributes: Attributes, *parts: Value) -> Value:
    if all(isinstance(part, list) for part in parts):
        return [item for part in parts for item in part]
    like = next((part for part in parts if isinstance(part, Tensor)), None)
    return torch.cat([tensor(part, like) for part in parts], attributes["axis"])


def _split(attributes: Attributes, x: Value, sizes: Value = None) -> Any:
    axis = attributes.get("axis", 0)
    sizes = attributes.get("split") if sizes is None else sizes
    count = attributes["outputs"]
    whole = len(x) if isinstance(x, list) else x.shape[axis]
    given = None if sizes is None else numbers(sizes, "sizes of a split are")
    if given is None:
        part = -(-whole // count)
        given = [part] * (count - 1) + [whole - part * (count - 1)]
    elif len(set(given)) == 1:  # equal parts stay equal when the whole is made smaller
        given = [whole // count] * count
    if isinstance(x, list):
        starts = [sum(given[:i]) for i in range(len(given))]
        return tuple(x[start : start + size] for start, size in zip(starts, given, strict=True))
    return tuple(torch.split(x, given, axis))


def _slice(attributes: Attributes, x: Value, starts: Value = None, ends: Value = None, axes: Value = None,
           steps: Value = None) -> Value:  # fmt: skip
    starts = attributes["starts"] if starts is None else numbers(starts, "the starts of a slice are")
    ends = attributes["ends"] if ends is None else numbers(ends, "the ends of a slice are")
    axes = attributes.get("axes") if axes is None else numbers(axes, "axes are")
    steps = [1] * len(starts) if steps is None else numbers(steps, "the steps of a slice are")
    if isinstance(x, list):
        return x[_range(starts[0], ends[0], steps[0], len(x))]
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        axis = axis % x.dim()
        if isinstance(step, int) and step < 0:
            if step != -1 or start not in (-1, x.shape[axis] - 1) or not isinstance(end, int) or end > -x.shape[axis]:
                picked = range(*_range(start, end, step, x.shape[axis]).indices(x.shape[axis]))
                x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
            else:
                x = x.flip(axis)
            continue
        if isinstance(start, int) and start == 0 and isinstance(end, int) and end >= 2**31 - 1 and step == 1:
            continue
        x = x[(slice(None),) * axis + (_range(start, end, step, x.shape[axis]),)]
    return x


def _range(start: Any, end: Any, step: Any, size: Any) -> slice:
    """ONNX writes "to the end" as a very large number, and "to the front" of a backward slice as a very small one."""
    if isinstance(end, int) and (end >= 2**31 - 1 or end <= -(2**31) + 1):
        end = None
    if isinstance(start, int) and start >= 2**31 - 1 and isinstance(step, int) and step < 0:
        start = None
    return slice(start, end, step)


def _gather(attributes: Attributes, x: Value, index: Value) -> Value:
    axis = attributes.get("axis", 0)
    if isinstance(x, list) and plain(index):
        return [x[i] for i in index] if isinstance(index, list) else x[index]
    x = tensor(x)
    if plain(index) and not isinstance(index, list):
        return x.select(axis, index)
    index = tensor(index)
    if isinstance(index, Tensor) and index.dim() == 0:
        index = index.reshape(1)
        return x.index_select(axis, _wrapped(index, x.shape[axis])).squeeze(axis)
    axis = axis % x.dim()
    picked = x.index_select(axis, _wrapped(index.reshape(-1), x.shape[axis]))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _wrapped(index: Tensor, size: Any) -> Tensor:
    """Indices below zero count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather_elements(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, _wrapped(tensor(index), x.shape[axis]))


def _gather_nd(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    if attributes.get("batch_dims", 0):
        raise Unliftable("batch_dims")
    index = tensor(index)
    return x[tuple(_wrapped(index[..., i], x.shape[i]) for i in range(index.shape[-1]))]


def _expand(_: Attributes, x: Value, target: Value) -> Value:
    sizes = numbers(target, "a shape is")
    if isinstance(x, list) and len(sizes) == 1:
        return x * sizes[0] if len(x) == 1 and isinstance(sizes[0], int) else x
    x = tensor(x)
    rank = max(x.dim(), len(sizes))
    old = [1] * (rank - x.dim()) + list(x.shape)
    new = [1] * (rank - len(sizes)) + sizes
    wanted = [a if isinstance(b, int) and b == 1 else b for a, b in zip(old, new, strict=True)]
    return x.expand(wanted)


def _tile(_: Attributes, x: Value, repeats: Value) -> Value:
    times = numbers(repeats, "repeats are")
    return x * times[0] if isinstance(x, list) else tensor(x).repeat(times)


def _pad(attributes: Attributes, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    amounts = attributes["pads"] if pads is None else numbers(pads, "pads are")
    value = attributes.get("value", 0.0) if value is None else number(value, "the value of a pad is")
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in numbers(axes, "axes are")]
    half = len(amounts) // 2
    sides = {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(chosen)}
    flat = [n for axis in reversed(range(x.dim())) for n in sides.get(axis, (0, 0))]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return f.pad(x, flat, value=value)
    while len(flat) >= 2 and isinstance(flat[-1], int) and flat[-1] == 0 == flat[-2]:  # torch pads the last dimensions
        flat = flat[:-2]
    return f.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _constant_of_shape(attributes: Attributes, sizes: Value) -> Value:
    sizes = numbers(sizes, "a shape is")
    fill = attributes.get("value")
    value = 0.0 if fill is None else fill.item()
    kind = torch.float32 if fill is None else fill.dtype
    if len(sizes) == 1 and kind is torch.int64 and isinstance(sizes[0], int):
        return [value] * sizes[0]
    return torch.full(sizes, value, dtype=kind)


def _range_of(_: Attributes, start: Value, end: Value, step: Value) -> Value:
    given = [number(value, "the ends of a range are") for value in (start, end, step)]
    return torch.arange(*given, dtype=torch.float32 if any(isinstance(n, float) for n in given) else torch.int64)


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    rows, channels, height, width = x.shape
    if attributes.get("mode", "DCR") == "CRD":
        return f.pixel_shuffle(x, size)
    x = x.reshape(rows, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(rows, channels // size**2, height * size, width * size)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    rows, channels, height, width = x.shape
    x = x.reshape(rows, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(rows, channels * size**2, height // size, width // size)


def _trilu(attributes: Attributes, x: Tensor, k: Value = None) -> Tensor:
    offset = 0 if k is None else number(k, "the diagonal is")
    return torch.triu(x, offset) if attributes.get("upper", 1) else torch.tril(x, offset)


def _one_hot(attributes: Attributes, index: Tensor, depth: Value, values: Value) -> Tensor:
    count = number(depth, "the depth is")
    off, on = numbers(values, "values are") if plain(values) else (values[0], values[1])
    axis = attributes.get("axis", -1)
    hot = _wrapped(index, count).unsqueeze(axis) == torch.arange(count, device=index.device).reshape(
        [-1] + [1] * (index.dim() - (axis % (index.dim() + 1)))
    )
    like = values if isinstance(values, Tensor) else tensor(values)
    return torch.where(hot, tensor(on, like), tensor(off, like))


def _scatter_elements(attributes: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    if attributes.get("reduction", "none") != "none":
        raise Unliftable("reduction")
    axis = attributes.get("axis", 0)
    return torch.scatter(x, axis, _wrapped(tensor(index), x.shape[axis]), tensor(updates, x))


def _scatter_nd(attributes: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    if attributes.get("reduction", "none") != "none":
        raise Unliftable("reduction")
    index = tensor(index)
    places = tuple(_wrapped(index[..., i], x.shape[i]) for i in range(index.shape[-1]))
    return torch.index_put(x, places, tensor(updates, x))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Shape": _shape, "Size": _size, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Concat": _concat, "Split": _split, "Slice": _slice,
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "Expand": _expand, "Tile": _tile,
    "Pad": _pad, "ConstantOfShape": _constant_of_shape, "Range": _range_of, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "Trilu": _trilu, "OneHot": _one_hot, "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}  # fmt: skip
