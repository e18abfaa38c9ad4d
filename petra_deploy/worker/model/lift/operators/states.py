"""What stands around a recurrent layer: torch's forms of outputs and states as ONNX's; not ONNX's own operators."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def unstack(given: Mapping[str, Any], y: Tensor) -> Tensor:
    """torch's (steps, rows, directions * units) as ONNX's (steps, directions, rows, units)."""
    ways = 2 if given.get("direction") == "bidirectional" else 1
    return y.reshape(*y.shape[:-1], ways, y.shape[-1] // ways).transpose(1, 2)


def _state(given: Mapping[str, Any], state: Any) -> Tensor:
    result: Tensor = state if given["index"] is None else state[given["index"]]
    return result


OPERATORS: dict[str, Callable[..., Any]] = {  # what stands around a layer; not ONNX's own
    "petra.unstack": unstack,
    "petra.state": _state,
    "petra.flip": lambda _, x: x.flip(0),
    "petra.pair": lambda _, *states: (states,),
}
