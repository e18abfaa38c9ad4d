"""torch layers of ONNX nodes with constant weights.

    layer = LAYERS["Conv"](node)      # nn.Conv2d with the node's weights; None: the node is of another form

Attributes and layouts: https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petra_deploy.worker.model.lift.operators.spatial import pads, symmetric

Weights = Callable[[Tensor], nn.Parameter]  # makes (or finds, where it is shared) the parameter of a tensor


@dataclass(frozen=True)
class Node:
    attributes: Mapping[str, Any]
    constants: Mapping[int, Tensor]  # by place among the inputs
    places: int  # inputs that are not left out end before this place
    rank: int  # of the first input
    parameter: Weights

    def constant(self, *places: int) -> bool:
        """Whether these inputs are constants of floating point, where they are there."""
        return all(place in self.constants and self.constants[place].is_floating_point() for place in places)


def conv(node: Node) -> nn.Module | None:
    """nn.Conv1d to nn.Conv3d; None where pads differ by side (the builder pads before)."""
    weight, given = node.constants[1], node.attributes
    rank = weight.dim() - 2
    around = pads(dict(given), [0] * rank, list(weight.shape[2:])) if _plain_pads(given) else None
    if rank not in (1, 2, 3) or around is None or not symmetric(around) or (node.places > 2 and not node.constant(2)):
        return None
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    groups = given.get("group", 1)
    with torch.device("meta"):
        layer = kind(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
            tuple(given.get("strides") or [1] * rank), tuple(around[:rank]),
            tuple(given.get("dilations") or [1] * rank), groups, bias=node.places > 2,
        )  # fmt: skip
    return _filled(layer, node, weight=weight, bias=node.constants.get(2))


def _plain_pads(given: Mapping[str, Any]) -> bool:
    """Whether the pads do not depend on the input's size."""
    mode = given.get("auto_pad", "NOTSET")
    return mode in ("NOTSET", "VALID") or all(stride == 1 for stride in given.get("strides") or (2,))


def conv_transpose(node: Node) -> nn.Module | None:
    weight, given = node.constants[1], node.attributes
    rank, groups = weight.dim() - 2, given.get("group", 1)
    around = list(given.get("pads") or [0] * 2 * rank)
    plain = given.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in given
    if rank not in (1, 2, 3) or not plain or not symmetric(around) or (node.places > 2 and not node.constant(2)):
        return None
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
    with torch.device("meta"):
        layer = kind(
            weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]),
            tuple(given.get("strides") or [1] * rank), tuple(around[:rank]),
            tuple(given.get("output_padding") or [0] * rank), groups, bias=node.places > 2,
            dilation=tuple(given.get("dilations") or [1] * rank),
        )  # fmt: skip
    return _filled(layer, node, weight=weight, bias=node.constants.get(2))


def gemm(node: Node) -> nn.Module | None:
    given, weight, bias = node.attributes, node.constants[1], node.constants.get(2)
    if given.get("transA") or (node.places > 2 and bias is None):
        return None
    weight = weight if given.get("transB") else weight.t()
    if bias is not None and bias.numel() != weight.shape[0]:
        bias = bias.reshape(-1).expand(weight.shape[0]) if bias.numel() == 1 else None
        if bias is None:
            return None
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    weight = weight if alpha == 1.0 else weight * alpha
    bias = bias if bias is None or beta == 1.0 else bias * beta
    return linear(node, weight, bias.reshape(-1) if bias is not None else None)


def matmul(node: Node) -> nn.Module | None:
    """Of a matrix on the right; a vector in front of it is no rows of features."""
    weight = node.constants[1]
    return linear(node, weight.t(), None) if weight.dim() == 2 and node.rank > 1 else None


def linear(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(layer, node, weight=weight, bias=bias)


def batch_norm(node: Node) -> nn.Module | None:
    if not node.constant(1, 2, 3, 4) or node.attributes.get("training_mode"):
        return None
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(node.rank)
    if kind is None:
        return None
    scale, bias, mean, variance = (node.constants[place] for place in (1, 2, 3, 4))
    layer = kind(len(scale), eps=node.attributes.get("epsilon", 1e-5))
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return _filled(layer, node, weight=scale, bias=bias)


def instance_norm(node: Node) -> nn.Module | None:
    kind = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(node.rank)
    if kind is None or not node.constant(1, 2):
        return None
    layer = kind(len(node.constants[1]), eps=node.attributes.get("epsilon", 1e-5), affine=True)
    return _filled(layer, node, weight=node.constants[1], bias=node.constants[2])


def layer_norm(node: Node) -> nn.Module | None:
    scale, axis = node.constants[1], node.attributes.get("axis", -1)
    last = node.rank - (axis % node.rank)
    if scale.dim() != last or (node.places > 2 and not node.constant(2)) or node.attributes["outputs"] > 1:
        return None
    layer = nn.LayerNorm(
        tuple(scale.shape), node.attributes.get("epsilon", 1e-5), bias=node.places > 2, elementwise_affine=True
    )
    return _filled(layer, node, weight=scale, bias=node.constants.get(2))


def rms_norm(node: Node) -> nn.Module | None:
    scale, axis = node.constants[1], node.attributes.get("axis", -1)
    if scale.dim() != node.rank - (axis % node.rank) or node.attributes["outputs"] > 1:
        return None
    return _filled(nn.RMSNorm(tuple(scale.shape), node.attributes.get("epsilon", 1e-5)), node, weight=scale)


def group_norm(node: Node) -> nn.Module | None:
    if not node.constant(1, 2) or node.attributes["opset"] < 21:
        return None
    scale, groups = node.constants[1], node.attributes["num_groups"]
    layer = nn.GroupNorm(groups, len(scale), node.attributes.get("epsilon", 1e-5))
    return _filled(layer, node, weight=scale, bias=node.constants[2])


def prelu(node: Node) -> nn.Module | None:
    slope = node.constants[1]
    channels = slope.numel()
    fits = channels == 1 or (slope.dim() == node.rank - 1 and slope.shape[0] == channels)
    return _filled(nn.PReLU(channels), node, weight=slope.reshape(-1)) if fits and node.rank > 1 else None


def embedding(node: Node) -> nn.Module | None:
    """Of Gather with constant rows (place 0)."""
    table = node.constants[0]
    if table.dim() != 2 or not table.is_floating_point() or node.attributes.get("axis", 0) != 0:
        return None
    with torch.device("meta"):
        layer = nn.Embedding(table.shape[0], table.shape[1])
    return _filled(layer, node, weight=table)


def _filled(layer: nn.Module, node: Node, **tensors: Tensor | None) -> nn.Module:
    for name, value in tensors.items():
        if value is not None:
            setattr(layer, name, node.parameter(value))
    return layer.eval()


LAYERS: dict[str, Callable[[Node], nn.Module | None]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul, "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm, "LayerNormalization": layer_norm, "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": rms_norm, "GroupNormalization": group_norm, "PRelu": prelu,
}  # fmt: skip
