"""Which tensors to quantize so that ONNX Runtime's CPU kernels stay in int8 from end to end.

A torchao `Quantizer` for torch.export graphs. ONNX Runtime fuses an operator into its QLinear form
only when all its inputs come through DequantizeLinear and its output goes into QuantizeLinear; so
beside convolutions and linear layers this annotates both sides of residual additions, pooling,
concatenation and everything that only moves data (which keeps its input's scale). ReLU and clamp
vanish into the QuantizeLinear after them, hence the output is taken behind them. Weights are int8
per output channel without zero point, activations uint8, biases int32 on the product of scales.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from petra_deploy.worker.artifact import scopes
from petra_deploy.worker.model.precision import within

aten = torch.ops.aten
CONV = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
CLAMP = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default}
ARITHMETIC = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor}
MOVES = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default,
    aten.dropout.default, aten.slice.Tensor, aten.contiguous.default,
}  # fmt: skip
POOLS = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.mean.dim}
AT_THE_END = {
    aten.sigmoid.default, aten.softmax.int, aten.log_softmax.int, aten.tanh.default, aten.squeeze.dim,
    aten.squeeze.default, aten.unsqueeze.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
}  # fmt: skip
SMALL_HEAD = 16_384  # weights; below this the Q/DQ pair costs more than int8 saves, unless already int8


class OrtQuantizer(Quantizer):  # type: ignore[misc]
    """`activation` and `weight` are the specs to use; `skip_head` leaves the last layer in float,
    `keep_float` these modules of the user's.
    """

    def __init__(
        self, activation: QuantizationSpec, weight: QuantizationSpec, *, lstm: bool = True, skip_head: bool = False,
        keep_float: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation = activation
        self.weight = weight
        self.lstm = lstm
        self.skip_head = skip_head
        self.keep_float = keep_float
        self.table = QuantizationSpec(  # of an embedding: one scale, so that int8 rows can be gathered
            torch.int8, MinMaxObserver, weight.quant_min, weight.quant_max, torch.per_tensor_symmetric
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        integer: set[Node] = set()  # nodes whose output will be quantized
        for node in model.graph.nodes:
            if node.op != "call_function" or Q_ANNOTATION_KEY in node.meta or part_of(node, self.keep_float):
                continue
            if node.target in CONV or node.target is aten.linear.default:
                self._weighted(node, integer)
            elif node.target in ARITHMETIC:
                self._arithmetic(node, integer)
            elif node.target in POOLS and node.args[0] in integer and _is_pooling(node):
                self._mark(node, {node.args[0]: self.activation}, integer, node)
            elif node.target in MOVES and node.args[0] in integer:
                shared = SharedQuantizationSpec((node.args[0], node))
                self._mark(node, {node.args[0]: self.activation}, integer, node, shared)
            elif node.target is aten.cat.default and any(part in integer for part in node.args[0]):
                self._concat(node, integer)
            elif node.target is aten.embedding.default and _is_parameter(node.args[0]):
                self._mark(node, {node.args[0]: self.table}, integer)
            elif node.target is aten.lstm.input and self.lstm:
                matrices = [p for p in node.args[2] if _is_parameter(p) and p.meta["val"].dim() == 2]
                self._mark(node, dict.fromkeys(matrices, self.weight), integer)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: what is not annotated stays in float."""

    def _weighted(self, node: Node, integer: set[Node]) -> None:
        """Convolution or linear layer: input, weight and, where the kernel adds it, the bias."""
        arguments: tuple[Any, ...] = node.args
        data, weight, bias = arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None
        if not (_is_activation(data) and _is_parameter(weight)):
            return
        tail = _after_clamp(node)
        head = _makes_an_output(tail)
        conv = node.target in CONV
        small = not conv and data not in integer and weight.meta["val"].numel() < SMALL_HEAD
        if head and (small or self.skip_head):
            return
        specs: dict[Any, Any] = {data: self.activation, weight: self.weight}
        if _is_parameter(bias) and (conv or data.meta["val"].dim() == 2):
            specs[bias] = self._bias(node, data, weight)
        # A linear layer's float output is free (MatMulIntegerToFloat); quantize it for another one only.
        integer_output = not head and (conv or all(self._takes_integers(user) for user in tail.users))
        self._mark(node, specs, integer, tail if integer_output else None)

    def _takes_integers(self, node: Node) -> bool:
        return node.target is aten.linear.default and not part_of(node, self.keep_float)

    def _arithmetic(self, node: Node, integer: set[Node]) -> None:
        operands = node.args[:2]
        if len(operands) == 2 and all(map(_is_activation, operands)) and any(x in integer for x in operands):
            self._mark(node, dict.fromkeys(operands, self.activation), integer, _after_clamp(node))

    def _concat(self, node: Node, integer: set[Node]) -> None:
        """All parts on the first one's scale, or each would be scaled again before joining.

        Not so before a clamp, which is absorbed by an output scale of its own.
        """
        parts: Any = node.args[0]
        tail = _after_clamp(node)
        if tail is not node:
            self._mark(node, dict.fromkeys(parts, self.activation), integer, tail)
            return
        shared = SharedQuantizationSpec((parts[0], node))
        specs = {part: self.activation if index == 0 else shared for index, part in enumerate(dict.fromkeys(parts))}
        self._mark(node, specs, integer, node, shared)

    def _mark(
        self, node: Node, inputs: Mapping[Any, Any], integer: set[Node],
        output: Node | None = None, spec: Any = None,
    ) -> None:  # fmt: skip
        """Annotate `node`'s inputs and, where given, the output of `output` (itself or a clamp after it)."""
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=dict(inputs))
        if output is not None:
            if output is not node:
                output.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation()
            output.meta[Q_ANNOTATION_KEY].output_qspec = spec or self.activation
            integer.add(output)

    @staticmethod
    def _bias(node: Node, data: Node, weight: Node) -> DerivedQuantizationSpec:
        """int32 on the scale input x weight, as QLinearConv and QGemm add it."""

        def scale(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
            product = observers[0].calculate_qparams()[0] * observers[1].calculate_qparams()[0]
            product = product.to(torch.float32).reshape(-1)
            return product, torch.zeros_like(product, dtype=torch.int64)

        return DerivedQuantizationSpec(
            derived_from=[(data, node), (weight, node)],
            derive_qparams_fn=scale,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )


def part_of(node: Node, names: tuple[str, ...]) -> str:
    """The one of the user's modules called `names` that the node is of: by its parameters, or by who called it."""
    values = [value for value in node.all_input_nodes if _is_parameter(value)]
    read = [scopes.parameter(str(value.target)) for value in values]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]).removeprefix("L['self'].") if stack else ""
    return next((part for name in (*read, scopes.module(path)) if name and (part := within(name, names))), "")


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _is_activation(value: Any) -> bool:
    """A float tensor made in the graph: neither a scalar nor a parameter."""
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not _is_parameter(value)


def _is_pooling(node: Node) -> bool:
    """Not a mean over something else than all places: that has no integer kernel."""
    if node.target is not aten.mean.dim:
        return True
    arguments: tuple[Any, ...] = node.args
    rank = arguments[0].meta["val"].dim()
    return rank > 2 and sorted(axis % rank for axis in arguments[1]) == list(range(2, rank))


def _after_clamp(node: Node) -> Node:
    """The ReLU or clamp that alone uses `node`, else `node`."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMP else node


def _makes_an_output(node: Node) -> bool:
    """Whether nothing but activations and reshapes lies between `node` and an output of the model."""
    while not any(user.op == "output" for user in node.users):
        users = list(node.users)
        if len(users) != 1 or users[0].target not in AT_THE_END:
            return False
        node = users[0]
    return True
