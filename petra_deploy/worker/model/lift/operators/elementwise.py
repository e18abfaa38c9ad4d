"""Operators that work on each element by itself, and the types of elements."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from petra_deploy.worker.model.lift.values import INTEGERS, Value, broadcast, dtype, paired, plain, single, tensor

Attributes = dict[str, Any]


def _divide(a: Any, b: Any) -> Any:
    whole = not isinstance(a, float | torch.SymFloat) and not isinstance(b, float | torch.SymFloat)
    return a // b if whole else a / b


def _divide_tensors(a: Value, b: Value) -> Tensor:
    whole = all(not x.is_floating_point() for x in (a, b) if isinstance(x, Tensor))
    return torch.div(tensor(a, b if isinstance(b, Tensor) else None), b, rounding_mode="trunc" if whole else None)


def _both(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Value, Value], Tensor]:
    return lambda a, b: function(tensor(a), tensor(b))


def _mod(attributes: Attributes, a: Value, b: Value) -> Value:
    if plain(a) and plain(b):
        return broadcast(operator.mod, a, b)
    a, b = tensor(a), tensor(b)
    return torch.fmod(a, b) if attributes.get("fmod") else torch.remainder(a, b)


def _folded(
    on_plain: Callable[[Any, Any], Any], on_tensors: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Value]:
    """An operator of any number of operands."""

    def apply(_: Attributes, *values: Value) -> Value:
        result = values[0]
        for value in values[1:]:
            if plain(result) and plain(value):
                result = broadcast(on_plain, result, value)
            else:
                like = result if isinstance(result, Tensor) else value
                result = on_tensors(tensor(result, like), tensor(value, like))
        return result

    return apply


def _clip(attributes: Attributes, x: Value, low: Value = None, high: Value = None) -> Value:
    low = attributes.get("min") if low is None else low
    high = attributes.get("max") if high is None else high
    if plain(x):
        x = x if low is None else broadcast(max, x, low)
        return x if high is None else broadcast(min, x, high)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, tensor(low, x))
        return x if high is None else torch.minimum(x, tensor(high, x))
    low, high = (value[0] if isinstance(value, list) else value for value in (low, high))
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cast(attributes: Attributes, x: Value, like: Value = None) -> Value:
    number = attributes.get("to")
    if number is None and isinstance(like, Tensor):
        return tensor(x).to(like.dtype)
    if plain(x) and number in INTEGERS and number == 7:
        return [_whole(item) for item in x] if isinstance(x, list) else _whole(x)
    if plain(x) and number in (1, 11) and not isinstance(x, list) and isinstance(x, bool | int | float):
        return float(x)
    return tensor(x).to(dtype(number or 0))


def _whole(x: Any) -> Any:
    return x if isinstance(x, torch.SymInt) else int(x)


def _where(_: Attributes, condition: Value, a: Value, b: Value) -> Value:
    if plain(condition) and plain(a) and plain(b):
        picks = broadcast(lambda c, x: (bool(c), x), condition, a)
        return broadcast(lambda pick, y: pick[1] if pick[0] else y, picks, b)
    like = next((x for x in (a, b) if isinstance(x, Tensor)), None)
    return torch.where(tensor(condition).bool(), tensor(a, like), tensor(b, like))


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return f.gelu(x, approximate=attributes.get("approximate", "none"))


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * tensor(slope, x), x)


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Value]:
    def apply(attributes: Attributes, x: Tensor) -> Tensor:
        if attributes["opset"] >= 13:
            return function(x, dim=attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % x.dim()  # older opsets flatten what comes after
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return apply


def _dropout(_: Attributes, x: Value, *rest: Value) -> Value:
    return x


def _is_inf(attributes: Attributes, x: Tensor) -> Tensor:
    up, down = attributes.get("detect_positive", 1), attributes.get("detect_negative", 1)
    return torch.isinf(x) & ((x > 0) & bool(up) | (x < 0) & bool(down))


def _of(function: Callable[..., Tensor], **defaults: Any) -> Callable[..., Value]:
    """A function of one tensor, with ONNX attributes as further arguments in this order."""

    def apply(attributes: Attributes, x: Tensor) -> Tensor:
        return function(tensor(x), *(attributes.get(name, value) for name, value in defaults.items()))

    return apply


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def _same(a: Any, b: Any) -> bool:
    return bool(a == b)


OPERATORS: dict[str, Callable[..., Value]] = {
    "Add": paired(operator.add, operator.add), "Sub": paired(operator.sub, operator.sub),
    "Mul": paired(operator.mul, operator.mul), "Div": paired(_divide, _divide_tensors), "Mod": _mod,
    "Pow": paired(operator.pow, operator.pow), "Equal": paired(_same, operator.eq),
    "Less": paired(operator.lt, operator.lt), "LessOrEqual": paired(operator.le, operator.le),
    "Greater": paired(operator.gt, operator.gt), "GreaterOrEqual": paired(operator.ge, operator.ge),
    "And": paired(lambda a, b: a and b, _both(torch.logical_and)),
    "Or": paired(lambda a, b: a or b, _both(torch.logical_or)),
    "Xor": paired(operator.xor, _both(torch.logical_xor)), "Not": single(operator.not_, torch.logical_not),
    "Min": _folded(min, torch.minimum), "Max": _folded(max, torch.maximum),
    "Sum": _folded(operator.add, torch.add), "Mean": lambda a, *x: _mean(*x),
    "Neg": single(operator.neg, torch.neg), "Abs": single(abs, torch.abs),
    "Sqrt": single(math.sqrt, torch.sqrt), "Exp": single(math.exp, torch.exp), "Log": single(math.log, torch.log),
    "Floor": single(math.floor, torch.floor), "Ceil": single(math.ceil, torch.ceil),
    "Round": single(round, torch.round), "Reciprocal": single(lambda x: 1.0 / x, torch.reciprocal),
    "Erf": _of(torch.erf), "Sign": _of(torch.sign), "Sin": _of(torch.sin), "Cos": _of(torch.cos), "Tan": _of(torch.tan),
    "Atan": _of(torch.atan), "Sinh": _of(torch.sinh), "Cosh": _of(torch.cosh), "IsNaN": _of(torch.isnan),
    "IsInf": _is_inf, "Relu": _of(torch.relu), "Sigmoid": _of(torch.sigmoid), "Tanh": _of(torch.tanh),
    "Softplus": _of(f.softplus), "Softsign": _of(f.softsign), "Mish": _of(f.mish), "Gelu": _gelu,
    "Elu": _of(f.elu, alpha=1.0), "Celu": _of(f.celu, alpha=1.0), "LeakyRelu": _of(f.leaky_relu, alpha=0.01),
    "Selu": _of(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "HardSigmoid": _of(_hard_sigmoid, alpha=0.2, beta=0.5), "HardSwish": _of(f.hardswish),
    "ThresholdedRelu": _of(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0),
    "Swish": _of(lambda x, alpha: x * torch.sigmoid(alpha * x), alpha=1.0),
    "PRelu": _prelu, "Clip": _clip, "Cast": _cast, "CastLike": _cast, "Where": _where,
    "Softmax": _softmax(f.softmax), "LogSoftmax": _softmax(f.log_softmax), "Dropout": _dropout,
    "Identity": lambda _, x: x,
}  # fmt: skip


def _mean(*values: Tensor) -> Tensor:
    return sum(values[1:], values[0]) / len(values)
