"""ONNX operator type -> what computes it: a function of the attributes and the inputs, in the operator's own order.

Attributes are as onnx gives them, with "opset" and the number of "outputs" added. Results are one value, or
a tuple where the operator has several outputs. What a function cannot do it says by Unliftable.
Definitions: https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable
from typing import Any

from petra_deploy.worker.model.lift.operators import elementwise, reduce, shapes, spatial, states

OPERATORS: dict[str, Callable[..., Any]] = {
    **elementwise.OPERATORS,
    **shapes.OPERATORS,
    **reduce.OPERATORS,
    **spatial.OPERATORS,
    **states.OPERATORS,
}

# Inputs that stay plain numbers where they are constant: shapes, axes, sizes.
PLAIN: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Slice": (1, 2, 3, 4), "Resize": (1, 2, 3), "Pad": (1, 2, 3), "Expand": (1,), "Tile": (1,),
    "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "TopK": (1,),
    "CumSum": (1,), "Trilu": (1,), "OneHot": (1,), "Clip": (1, 2),
    **dict.fromkeys((name for name in reduce.OPERATORS if name.startswith("Reduce")), (1,)),
}  # fmt: skip
