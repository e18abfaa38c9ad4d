"""Pooling, resizing, attention, and layers whose weights are computed."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from petra_deploy.worker.model.lift.values import Unliftable, Value, numbers, tensor

Attributes = dict[str, Any]
CONVOLUTIONS = {1: f.conv1d, 2: f.conv2d, 3: f.conv3d}


def pads(attributes: Attributes, sizes: Any, kernel: list[int]) -> list[Any]:
    """[begin..., end...] of the spatial dimensions, whose input sizes are `sizes`."""
    rank, mode = len(kernel), attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * 2 * rank
    if mode == "NOTSET":
        return list(attributes.get("pads") or [0] * 2 * rank)
    strides, dilations = attributes.get("strides") or [1] * rank, attributes.get("dilations") or [1] * rank
    begin, end = [], []
    for size, stride, tap, dilation in zip(sizes, strides, kernel, dilations, strict=True):
        if stride == 1:
            total = (tap - 1) * dilation
        else:
            total = max((-(-size // stride) - 1) * stride + (tap - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def padded(x: Tensor, amounts: list[Any], value: float = 0.0) -> Tensor:
    """`x` with [begin..., end...] more elements around its spatial dimensions."""
    rank = len(amounts) // 2
    return f.pad(x, [n for axis in reversed(range(rank)) for n in (amounts[axis], amounts[rank + axis])], value=value)


def symmetric(amounts: list[Any]) -> bool:
    half = len(amounts) // 2
    return amounts[:half] == amounts[half:]


def _convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    around = pads(attributes, x.shape[2:], list(weight.shape[2:]))
    strides, dilations = attributes.get("strides") or [1] * rank, attributes.get("dilations") or [1] * rank
    result: Tensor = CONVOLUTIONS[rank](
        padded(x, around), weight, bias, strides, [0] * rank, dilations, attributes.get("group", 1)
    )
    return result


def _max_pool(attributes: Attributes, x: Tensor) -> Any:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    if attributes["outputs"] > 1 or attributes.get("storage_order"):
        raise Unliftable("indices of the maxima")
    function = {1: f.max_pool1d, 2: f.max_pool2d, 3: f.max_pool3d}[rank]
    around = pads(attributes, x.shape[2:], kernel)
    strides, dilations = attributes.get("strides") or [1] * rank, attributes.get("dilations") or [1] * rank
    half = around[:rank]
    if not symmetric(around) or any(2 * p > k for p, k in zip(half, kernel, strict=True)):
        x, half = padded(x, around, float("-inf")), [0] * rank
    return function(x, kernel, strides, half, dilations, bool(attributes.get("ceil_mode", 0)))


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    if any(n != 1 for n in attributes.get("dilations") or ()):
        raise Unliftable("dilations")
    function = {1: f.avg_pool1d, 2: f.avg_pool2d, 3: f.avg_pool3d}[rank]
    around = pads(attributes, x.shape[2:], kernel)
    strides, count = attributes.get("strides") or [1] * rank, bool(attributes.get("count_include_pad", 0))
    ceil = bool(attributes.get("ceil_mode", 0))
    if symmetric(around) and all(2 * p <= k for p, k in zip(around, kernel * 2, strict=True)):
        return function(x, kernel, strides, around[:rank], ceil, count)
    if ceil:
        raise Unliftable("ceil_mode with pads that differ by side")
    total = function(padded(x, around), kernel, strides)
    if count:
        return total
    return total / function(padded(torch.ones_like(x[:1, :1]), around), kernel, strides)


def _lp_pool(attributes: Attributes, x: Tensor) -> Tensor:
    p, kernel = attributes.get("p", 2), attributes["kernel_shape"]
    mean = _average_pool({**attributes, "count_include_pad": 1}, x.abs().pow(p))
    return (mean * math.prod(kernel)).pow(1 / p)


def _everywhere(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda _, x: function(x, list(range(2, x.dim())), True)


def _resize(attributes: Attributes, x: Tensor, roi: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
    mode, where = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if attributes.get("antialias") or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unliftable("antialias and keep_aspect_ratio_policy")
    axes = attributes.get("axes") or list(range(x.dim()))
    given = numbers(scales, "scales are") if scales is not None and _length(scales) else None
    wanted = numbers(sizes, "sizes are") if sizes is not None and _length(sizes) else None
    names = {1: "linear", 2: "bilinear", 3: "trilinear"}
    rank = x.dim() - 2
    torch_mode = {"nearest": "nearest", "linear": names[rank], "cubic": "bicubic"}[mode]
    if mode == "nearest" and (where, attributes.get("nearest_mode", "round_prefer_floor")) != ("asymmetric", "floor"):
        if where == "half_pixel":
            torch_mode = "nearest-exact"
        elif where != "asymmetric" or given is None or any(s != int(s) for s in given):
            raise Unliftable(f"{where} of nearest neighbours")
        elif attributes.get("nearest_mode", "round_prefer_floor") not in ("floor", "round_prefer_floor"):
            raise Unliftable(f"nearest_mode {attributes['nearest_mode']}")
    elif mode != "nearest" and where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Unliftable(f"coordinates {where}")
    corners = where == "align_corners" if mode != "nearest" else None
    if given is not None:
        factor = dict(zip(axes, given, strict=True))
        if any(factor.get(axis, 1.0) != 1.0 for axis in (0, 1)):
            raise Unliftable("another number of rows or channels")
        size = [math.floor(x.shape[axis] * factor.get(axis, 1.0)) if isinstance(x.shape[axis], int)
                else x.shape[axis] * int(factor.get(axis, 1.0)) for axis in range(2, x.dim())]  # fmt: skip
    else:
        target = dict(zip(axes, wanted or [], strict=True))
        size = [target.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
    return f.interpolate(x, size=size, mode=torch_mode, align_corners=corners)


def _length(value: Value) -> int:
    return value.numel() if isinstance(value, Tensor) else len(value) if isinstance(value, list) else 1


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return f.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    normal = f.layer_norm(x, list(x.shape[axis:]), eps=attributes.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def _rms_norm(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(attributes.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + attributes.get("epsilon", 1e-5)) * scale


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = attributes["num_groups"]
    if attributes["opset"] < 21:  # one scale a group, not a channel
        times = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
    return f.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


def _attention(attributes: Attributes, q: Tensor, k: Tensor, v: Tensor, mask: Value = None, *rest: Value) -> Tensor:
    """Attention-23 by matrix products, as torch would export it; a past and scores given out are refused."""
    if any(value is not None for value in rest) or attributes["outputs"] > 1:
        raise Unliftable("a past, or scores given out")
    if attributes.get("softcap", 0.0):
        raise Unliftable("softcap")
    flat = q.dim() == 3
    if flat:
        heads, kv_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
        many = ((q, heads), (k, kv_heads), (v, kv_heads))
        q, k, v = (t.reshape(*t.shape[:-1], n, t.shape[-1] // n).transpose(1, 2) for t, n in many)
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scale = attributes.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.transpose(-1, -2)) * scale
    if attributes.get("is_causal"):
        ahead = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    if mask is not None:
        mask = tensor(mask)
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    result = scores.softmax(-1) @ v
    return result.transpose(1, 2).flatten(2) if flat else result


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _convolution, "MaxPool": _max_pool, "AveragePool": _average_pool, "LpPool": _lp_pool,
    "GlobalAveragePool": _everywhere(torch.mean), "GlobalMaxPool": _everywhere(torch.amax), "Resize": _resize,
    "InstanceNormalization": _instance_norm, "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm, "SimplifiedLayerNormalization": _rms_norm, "Attention": _attention,
}  # fmt: skip
