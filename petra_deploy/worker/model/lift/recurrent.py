"""LSTM, GRU and RNN of ONNX as torch's own layers, of one layer each.

ONNX orders the gates i o f c (LSTM) and z r h (GRU), torch i f g o and r z n; ONNX's output is
(steps, directions, rows, units), torch's (steps, rows, directions * units). Source:
https://onnx.ai/onnx/operators/onnx__LSTM.html, and torch.nn.LSTM.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from petra_deploy.worker.model.lift.values import Unliftable

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's n-th gate is ONNX's GATES[n]-th
KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


def make(operator: str, given: Mapping[str, Any], constants: Mapping[int, Tensor], places: int) -> nn.Module:
    """The layer, batch second. Raises Unliftable for what torch's layers do not do."""
    missing = [name for place, name in ((1, "W"), (2, "R")) if place not in constants]
    if missing or (places > 3 and 3 not in constants):
        raise Unliftable("weights that are computed")
    direction, hidden = given.get("direction", "forward"), given["hidden_size"]
    activations = tuple(name.lower() for name in given.get("activations") or ())
    ways = 2 if direction == "bidirectional" else 1
    usual = _USUAL[operator] * ways
    relu = operator == "RNN" and activations == ("relu",) * ways
    if activations and activations != usual and not relu:
        raise Unliftable(f"activations {', '.join(activations)}")
    for name in ("clip", "input_forget", "layout"):
        if given.get(name):
            raise Unliftable(name)
    if operator == "GRU" and not given.get("linear_before_reset"):
        raise Unliftable("linear_before_reset = 0")
    weights, recurrences, biases = constants[1], constants[2], constants.get(3)
    options = {"nonlinearity": "relu"} if relu else {}
    layer: nn.RNNBase = KINDS[operator](
        weights.shape[2], hidden, bias=biases is not None, bidirectional=ways == 2, **options
    )
    for way in range(ways):
        suffix = "_l0" + ("_reverse" if way else "")
        tensors = {"weight_ih": weights[way], "weight_hh": recurrences[way]}
        if biases is not None:
            tensors |= {"bias_ih": biases[way].chunk(2)[0], "bias_hh": biases[way].chunk(2)[1]}
        for name, tensor in tensors.items():
            gates = tensor.chunk(len(GATES[operator]))
            setattr(layer, name + suffix, nn.Parameter(torch.cat([gates[gate] for gate in GATES[operator]])))
    return layer.eval()


def unstack(given: Mapping[str, Any], y: Tensor) -> Tensor:
    """torch's (steps, rows, directions * units) as ONNX's (steps, directions, rows, units)."""
    ways = 2 if given.get("direction") == "bidirectional" else 1
    return y.unflatten(-1, (ways, y.shape[-1] // ways)).transpose(1, 2)


def _state(given: Mapping[str, Any], state: Any) -> Tensor:
    result: Tensor = state if given["index"] is None else state[given["index"]]
    return result


OPERATORS: dict[str, Callable[..., Any]] = {  # what stands around a layer; not ONNX's own
    "petra.unstack": unstack,
    "petra.state": _state,
    "petra.flip": lambda _, x: x.flip(0),
    "petra.pair": lambda _, *states: (states,),
}
