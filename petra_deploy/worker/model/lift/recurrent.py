"""LSTM, GRU and RNN of ONNX as torch's own layers, of one layer each.

ONNX orders the gates i o f c (LSTM) and z r h (GRU), torch i f g o and r z n; ONNX's output is
(steps, directions, rows, units), torch's (steps, rows, directions * units). Source:
https://onnx.ai/onnx/operators/onnx__LSTM.html, and torch.nn.LSTM.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from petra_deploy.worker.model.lift.tape import Argument, Literal, Ref, Step
from petra_deploy.worker.model.lift.values import Unliftable

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's n-th gate is ONNX's GATES[n]-th
KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


def make(node: onnx.NodeProto, given: Mapping[str, Any], constants: Mapping[int, Tensor]) -> nn.Module:
    """The layer, batch second. Raises Unliftable for what torch's layers do not do."""
    operator, inputs = node.op_type, [*node.input, *[""] * 8]
    if any(inputs[place] and place not in constants for place in (1, 2, 3)):
        raise Unliftable("its weights are computed")
    for place, what in ((4, "lengths of sequences"), (7, "peepholes")):
        if inputs[place]:
            raise Unliftable(what)
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


def around(
    node: onnx.NodeProto, given: Mapping[str, Any], inputs: Sequence[Argument], path: str, *, started: bool
) -> Iterator[Step]:
    """The steps that the node is, with the layer at `path`; `started`: initial states are given that are not zero."""
    base, back = node.output[0] or node.output[1], given.get("direction") == "reverse"
    x = inputs[0]
    if back:
        yield Step("petra.flip", (x,), (f"{base}:in",))
        x = Ref(f"{base}:in")
    states = tuple(inputs[5:7]) if started else ()
    if states and node.op_type == "LSTM":
        if len(states) < 2 or Literal(None) in states:
            raise Unliftable("one initial state of two")
        yield Step("petra.pair", states, (f"{base}:first",))
        states = (Ref(f"{base}:first"),)
    yield Step(node.op_type, (x, *states), (f"{base}:raw", f"{base}:state"), layer=path)
    raw = Ref(f"{base}:raw")
    if back:
        yield Step("petra.flip", (raw,), (f"{base}:out",))
        raw = Ref(f"{base}:out")
    for place, name in enumerate(node.output):
        if name and place == 0:
            yield Step("petra.unstack", (raw,), (name,), given)
        elif name:
            index = place - 1 if node.op_type == "LSTM" else None
            yield Step("petra.state", (Ref(f"{base}:state"),), (name,), {"index": index})
