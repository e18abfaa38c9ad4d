"""BatchNorm after a concatenation of convolutions, folded into those, in a torch.export graph.

torchao folds a norm into the one convolution before it. Behind a concatenation (InceptionTime) it
would stay a float operator between int8 ones. `worker/artifact/tidy/concat_norm.py` does the same
to ONNX graphs.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def fold(model: GraphModule) -> int:
    """Fold in place; returns how many norms are gone."""
    folded = 0
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not aten.batch_norm.default:
            continue
        join, *parameters = node.args[:5]
        parts = _convolutions(join) if isinstance(join, Node) else []
        values = [tensor_of(model, parameter) for parameter in parameters]
        if not parts or len(join.users) != 1 or any(value is None for value in values):
            continue
        weight, bias, mean, variance = (value.double() for value in values if value is not None)
        scale = weight / torch.sqrt(variance + node.args[7])
        shift = bias - mean * scale
        sizes = [part.meta["val"].shape[1] for part in parts]
        for part, s, b in zip(parts, torch.split(scale, sizes), torch.split(shift, sizes), strict=True):
            _scale(model, part, s, b)
        node.replace_all_uses_with(join)
        model.graph.erase_node(node)
        folded += 1
    if folded:
        model.graph.eliminate_dead_code()
        model.recompile()
    return folded


def _convolutions(join: Node) -> list[Node]:
    """The convolutions that `join` concatenates along channels; empty where there is anything else."""
    if join.target is not aten.cat.default or (join.args[1] if len(join.args) > 1 else 0) != 1:
        return []
    parts: Any = join.args[0]
    alone = all(part.target in CONV and len(part.users) == 1 and part.args[1].op == "get_attr" for part in parts)
    return list(parts) if alone else []


def _scale(model: GraphModule, node: Node, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Give a convolution its own, scaled weights."""
    arguments: Any = node.args
    kernel, before = tensor_of(model, arguments[1]), tensor_of(model, arguments[2] if len(arguments) > 2 else None)
    if kernel is None:
        raise TypeError("a convolution without weights was let through")
    folded = (kernel * scale.reshape(-1, *[1] * (kernel.dim() - 1))).to(kernel.dtype)
    bias = (shift if before is None else shift + before * scale).to(kernel.dtype)
    with model.graph.inserting_before(node):
        fresh = [_parameter(model, f"{node.name}_{name}", value) for name, value in (("w", folded), ("b", bias))]
    node.args = (arguments[0], *fresh, *arguments[3:])


def _parameter(model: GraphModule, name: str, value: torch.Tensor) -> Node:
    model.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    node = model.graph.get_attr(name)
    node.meta["val"] = value
    return node


def tensor_of(model: GraphModule, node: Any) -> torch.Tensor | None:
    """The parameter or buffer that a get_attr node names."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = model
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value.detach() if isinstance(value, torch.Tensor) else None
