"""Operators that reduce, order or sum over dimensions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from petra_deploy.worker.model.lift.values import Value, number, numbers, tensor

Attributes = dict[str, Any]


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor], on_plain: Callable[[Any], Any] | None = None) -> Any:
    def apply(attributes: Attributes, x: Value, axes: Value = None) -> Value:
        keep = bool(attributes.get("keepdims", 1))
        if isinstance(x, list) and on_plain is not None:
            value = on_plain(x)
            return [value] if keep else value
        x = tensor(x)
        chosen = attributes.get("axes") if axes is None else numbers(axes, "axes are")
        if not chosen:
            if attributes.get("noop_with_empty_axes"):
                return x
            chosen = list(range(x.dim()))
        return function(x, sorted(axis % x.dim() for axis in chosen), keep)

    return apply


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = torch.prod(x, axis, keepdim=keep)
    return x.to(x.dtype)


def _best(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(attributes: Attributes, x: Tensor) -> Tensor:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        if attributes.get("select_last_index"):
            size = x.shape[axis]
            return size - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return apply


def _top_k(attributes: Attributes, x: Tensor, k: Value) -> tuple[Tensor, Tensor]:
    count = number(k, "the k of TopK is")
    values, places = torch.topk(x, count, attributes.get("axis", -1), bool(attributes.get("largest", 1)))
    return values, places


def _cumulative(attributes: Attributes, x: Tensor, axis: Value) -> Tensor:
    dim = number(axis, "the axis is")
    backward, exclusive = attributes.get("reverse"), attributes.get("exclusive")
    x = x.flip(dim) if backward else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(dim) if backward else total


def _einsum(attributes: Attributes, *operands: Tensor) -> Tensor:
    return torch.einsum(attributes["equation"], *operands)


def _norm(attributes: Attributes, x: Tensor) -> Tensor:
    p, axis = attributes.get("p", 2), attributes.get("axis", -1)
    size = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(size == 0, torch.zeros_like(x), x / size)


def _non_zero_mean(attributes: Attributes, x: Tensor) -> Tensor:
    axes = attributes.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _matmul(_: Attributes, a: Value, b: Value) -> Value:
    return torch.matmul(tensor(a), tensor(b))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    a = a.t() if attributes.get("transA") else a
    b = b.t() if attributes.get("transB") else b
    result = a @ b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    result = result if alpha == 1.0 else result * alpha
    return result if c is None else result + (c if beta == 1.0 else tensor(c) * beta)


OPERATORS: dict[str, Callable[..., Any]] = {
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype), sum),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep), max),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep), min),
    "ReduceProd": _reduce(_product, math.prod),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ArgMax": _best(torch.argmax), "ArgMin": _best(torch.argmin), "TopK": _top_k, "CumSum": _cumulative,
    "Einsum": _einsum, "LpNormalization": _norm, "MeanVarianceNormalization": _non_zero_mean, "MatMul": _matmul,
    "Gemm": _gemm,
}  # fmt: skip
