"""Rounding that is trained through: what stands in for INC's observers while an observed graph is trained.

    names = unnormalised(source.exported)           # weights whose layer no normalisation follows
    rounding = Rounding.inserted(prepared, names)
    model = Trainee(prepared, rounding, followed=rows)
    ...                                             # train it
    rounding.removed()                              # the observers are back, and say what was trained

Weights are rounded on the range that they have now; activations on the calibrated one, which follows the
batches (moving average) for the first `followed` rows and is frozen then. The gradient passes straight through what
lies in range (Jacob et al., arXiv 1712.05877). LSTM weights and embeddings are rounded likewise; BatchNorm was folded
before, so its statistics are frozen from the first step on.

With names, their layers obey the scale-adjusted rule (Jin, Yang and Liao, arXiv 1912.10207, constant rescaling): the
layer computes with Q / sqrt(n VAR[Q]) in place of its rounded weight Q, no gradient through the factor; n is the number
of outputs, times that of a kernel's places. So the weight it computes with has variance 1/n all the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import DerivedObserverOrFakeQuantize, MinMaxObserver

from petra_deploy.worker.techniques._ort_annotations import CONV

aten = torch.ops.aten
_MOMENTUM = 0.01  # of the ranges that follow, a batch
_DROPOUT = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default}
_RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
_NORMS = {
    aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default,
}  # fmt: skip


def unnormalised(exported: GraphModule) -> tuple[str, ...]:
    """Weights of convolutions and linear layers that no normalisation reads next, and that no other layer has."""
    found = []
    for node in exported.graph.nodes:
        arguments: tuple[Any, ...] = node.args
        if node.target not in CONV and node.target is not aten.linear.default:
            continue
        weight = arguments[1]
        alone = isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1
        if alone and not any(user.target in _NORMS for user in node.users):
            found.append(str(weight.target))
    return tuple(found)


def factor(rounded: Tensor) -> Tensor:
    """1 / sqrt(n VAR[Q]) of a weight (outputs, inputs, kernel...); a scalar, 1 where all its numbers are the same."""
    outputs = rounded.shape[0] * math.prod(rounded.shape[2:])
    deviation = rounded.detach().std()
    return torch.where(deviation > 0, 1 / (math.sqrt(outputs) * deviation), torch.ones_like(deviation))


class Rounded(nn.Module):
    """In place of one observer. `weight`: whether what it sees is a parameter; `rescaled`: by the rule above."""

    def __init__(self, observer: Any, *, weight: bool, rescaled: bool = False) -> None:
        super().__init__()
        self.observer = observer
        self.parameter, self.rescaled = weight, rescaled
        self.follows = not weight and type(observer) is MinMaxObserver
        self.scale, self.zero = (nn.Buffer(value) for value in observer.calculate_qparams())

    def forward(self, x: Tensor) -> Tensor:
        if self.parameter or (self.training and self.follows):
            self._observe(x.detach())
        low, high = self.observer.quant_min, self.observer.quant_max
        if self.scale.numel() > 1:
            rounded = torch.fake_quantize_per_channel_affine(x, self.scale, self.zero, self.observer.ch_axis, low, high)
        else:
            rounded = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, low, high)
        return rounded * factor(rounded) if self.rescaled else rounded

    def _observe(self, x: Tensor) -> None:
        if self.parameter:
            self.observer.reset_min_max_vals()
            self.observer(x)
        else:
            self.observer.min_val.lerp_(x.amin(), _MOMENTUM)
            self.observer.max_val.lerp_(x.amax(), _MOMENTUM)
        scale, zero = self.observer.calculate_qparams()
        self.scale, self.zero = nn.Buffer(scale.float()), nn.Buffer(zero.to(torch.int32))


@dataclass(frozen=True)
class Rounding:
    graph: GraphModule
    observers: dict[str, Any]  # by the names that they had in the graph
    weights: dict[str, Node]  # what reads a parameter: that parameter

    @staticmethod
    def inserted(graph: GraphModule, rescaled: Sequence[str] = ()) -> "Rounding":
        """`graph` is calibrated, and changed in place."""
        observers, weights, made = {}, {}, {}
        for node in graph.graph.nodes:
            observer: Any = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not hasattr(observer, "calculate_qparams") or isinstance(observer, DerivedObserverOrFakeQuantize):
                continue
            name, source = str(node.target), node.args[0]
            parameter = source.op == "get_attr"
            if parameter:
                weights[name] = source
            observers[name] = observer
            if id(observer) not in made:  # shared scales: one observer under several names
                made[id(observer)] = Rounded(
                    observer, weight=parameter, rescaled=parameter and str(source.target) in rescaled
                )
        for name, observer in observers.items():
            setattr(graph, name, made[id(observer)])
        return Rounding(graph, observers, weights)

    def removed(self) -> None:
        """The observers are back, and weights are what their layers computed with before rounding."""
        with torch.no_grad():
            for name, node in self.weights.items():
                stand_in: Any = self.graph.get_submodule(name)
                weight = _parameter(self.graph, node)
                if stand_in.rescaled:
                    stand_in.rescaled = False
                    weight.mul_(factor(stand_in(weight)))
                stand_in(weight)
        for name, observer in self.observers.items():
            setattr(self.graph, name, observer)

    def freeze(self) -> None:
        for name in self.observers:
            stand_in: Any = self.graph.get_submodule(name)
            stand_in.follows = False


class Trainee(nn.Module):
    """An observed graph that takes train() and eval(): dropout as in the module, inputs as positional tensors."""

    def __init__(self, rounding: Rounding, followed: float) -> None:
        super().__init__()
        self.graph = rounding.graph
        self.rounding, self.rows_left = rounding, followed

    def forward(self, *inputs: Tensor) -> Any:
        if self.training:
            if self.rows_left <= 0:
                self.rounding.freeze()
            self.rows_left -= len(inputs[0])
        return self.graph(*inputs)

    def train(self, mode: bool = True) -> "Trainee":
        self.training = mode
        for child in self.graph.modules():  # its own train() refuses
            child.training = mode
        for node in self.graph.graph.nodes:
            if node.target in _DROPOUT:
                node.args = (*node.args[:2], mode)
            elif node.target in _RECURRENT:
                node.args = (*node.args[:6], mode, *node.args[7:])
        self.graph.recompile()
        return self


def rescale(graph: GraphModule, names: Sequence[str]) -> list[str]:
    """Bring the weights of `names` that are rounded to the rule's scale, before calibration; which those were."""
    done = []
    with torch.no_grad():
        for node in graph.graph.nodes:
            source = node.args[0] if node.op == "call_module" and node.args else None
            if isinstance(source, Node) and source.op == "get_attr" and str(source.target) in names:
                observer: Any = graph.get_submodule(str(node.target))
                if isinstance(observer, DerivedObserverOrFakeQuantize):
                    continue
                weight = _parameter(graph, source)
                observer(weight)
                weight.mul_(factor(Rounded(observer, weight=True)(weight)))
                observer.reset_min_max_vals()
                done.append(str(source.target))
    return done


def _parameter(graph: GraphModule, node: Node) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    found: Tensor = getattr(graph.get_submodule(owner), name)
    return found
