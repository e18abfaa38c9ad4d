"""Constants and attributes of ONNX nodes as values of a lifted graph."""

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from petra_deploy.worker.model.lift.operators import PLAIN
from petra_deploy.worker.model.lift.values import Unliftable, Value

_PLAIN_LENGTH = 64  # whole numbers in a list up to this long stay plain numbers


def from_proto(given: onnx.TensorProto) -> Tensor:
    """Raises Unliftable for texts."""
    array = numpy_helper.to_array(given)
    if array.dtype.kind not in "biuf":
        raise Unliftable(f"a constant of element type {array.dtype}")
    return torch.from_numpy(array.copy())


def literal(value: Tensor, node: onnx.NodeProto, place: int) -> Value:
    """A constant as plain numbers where it is a size, an axis or a single number; else itself."""
    wanted = place in PLAIN.get(node.op_type, ())
    if value.dim() == 0 and value.dtype is not torch.float16 and value.dtype is not torch.bfloat16:
        return value.item()
    short = value.dtype is torch.int64 and value.numel() <= _PLAIN_LENGTH
    return value.tolist() if value.dim() == 1 and (wanted or short) else value


def attribute(given: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(given)
    if isinstance(value, onnx.TensorProto):
        return from_proto(value)
    if isinstance(value, bytes | int | float):
        return value.decode() if isinstance(value, bytes) else value
    return [item.decode() if isinstance(item, bytes) else item for item in value]


def constant(given: dict[str, Any]) -> Tensor:
    for name, kind in (("value_int", torch.int64), ("value_ints", torch.int64), ("value_float", torch.float32),
                       ("value_floats", torch.float32)):  # fmt: skip
        if name in given:
            return torch.tensor(given[name], dtype=kind)
    if not isinstance(given.get("value"), Tensor):
        raise Unliftable("a constant that is no tensor of numbers")
    result: Tensor = given["value"]
    return result
