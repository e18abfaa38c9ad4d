"""Where Q/DQ pairs stand so that TensorRT fuses: at the skip of a residual addition, at one scale around a Concat.

    model = ir.load(path); place(model)             # {"residual": 8, "concat": 2}

Residual: the arm that comes straight from a convolution loses its pair, and the skip keeps its own. TensorRT
then computes convolution, addition and ReLU in one int8 kernel, whose sum is rounded once. Concat: its inputs
and its output share a scale, so that joining int8 tensors moves bytes and computes nothing; a ReLU behind it
goes before it, into the convolutions. In a graph whose pairs are symmetric. Sources: TensorRT's documentation,
"Working with Quantized Types" (Q/DQ placement); NVIDIA ModelOpt's build_non_residual_input_map and
get_concat_eliminated_tensors.
"""

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_NEAR = 4  # a scale becomes at most so many times as coarse: two bits


def place(model: ir.Model) -> dict[str, int]:
    """Change `model` in place; returns how many additions and concatenations were changed."""
    depths = _depths(model.graph)
    residual = sum(_one_arm(node, depths) for node in list(model.graph) if node.op_type == "Add")
    joined = [node for node in list(model.graph) if node.op_type == "Concat" and _joins(model.graph, node)]
    _share_scales(model.graph, joined)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return {"residual": residual, "concat": len(joined)}


def _depths(graph: ir.Graph) -> dict[ir.Node, int]:
    """How many operators lie on the longest way from an input to each one."""
    depths: dict[ir.Node, int] = {}
    for node in graph:
        before = [depths.get(value.producer(), 0) for value in node.inputs if value is not None and value.producer()]  # type: ignore[arg-type]
        depths[node] = 1 + max(before, default=0)
    return depths


def _one_arm(add: ir.Node, depths: dict[ir.Node, int]) -> bool:
    """Take the pair off the arm that a convolution alone feeds; of two, off the one behind more operators."""
    arms = [_behind(value) for value in add.inputs]
    if any(value is None for value in arms):
        return False
    direct = [index for index, value in enumerate(arms) if value is not None and _only_into(value, add)]
    if not direct:
        return False
    index = max(direct, key=lambda i: depths[arms[i].producer()])  # type: ignore[union-attr,index]
    add.replace_input_with(index, arms[index])
    return True


def _behind(value: ir.Value | None) -> ir.Value | None:
    """x of DequantizeLinear(QuantizeLinear(x)); None where there is no pair."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != kind:
            return None
        value = node.inputs[0]
    return value


def _only_into(value: ir.Value, add: ir.Node) -> bool:
    """Whether a convolution makes `value`, and nothing but `add` reads it, through one pair."""
    producer = value.producer()
    if producer is None or producer.op_type not in _CONVOLUTIONS:
        return False
    readers = [value]
    for _ in range(2):  # QuantizeLinear, then DequantizeLinear
        uses = readers[-1].consumers()
        if len(uses) != 1:
            return False
        readers.append(uses[0].outputs[0])
    return readers[-1].consumers() == (add,) and not any(each.is_graph_output() for each in readers)


def _joins(graph: ir.Graph, concat: ir.Node) -> bool:
    """Whether activations are joined, and a pair stands behind, at most after a ReLU."""
    if any(value is None or value.const_value is not None for value in concat.inputs):
        return False
    if _pairs(concat.outputs[0]):
        return True
    uses = concat.outputs[0].consumers()
    if len(uses) != 1 or uses[0].op_type != "Relu" or not _pairs(uses[0].outputs[0]):
        return False
    _relu_first(graph, concat, uses[0])
    return True


def _relu_first(graph: ir.Graph, concat: ir.Node, relu: ir.Node) -> None:
    """ReLU, then Concat, in place of the other way round: the same numbers."""
    for index, value in enumerate(concat.inputs):
        own = ir.node("Relu", [value], name=f"{concat.name}_relu_{index}")
        own.outputs[0].name = f"{concat.outputs[0].name}_relu_{index}"
        _retype(own.outputs[0], value)
        graph.insert_before(concat, own)
        concat.replace_input_with(index, own.outputs[0])
    ir.convenience.replace_all_uses_with(relu.outputs[0], concat.outputs[0])


def _pairs(value: ir.Value) -> list[ir.Node]:
    """The QuantizeLinear nodes that read it."""
    return [node for node in value.consumers() if node.op_type == "QuantizeLinear" and node.inputs[0] is value]


def _share_scales(graph: ir.Graph, joined: list[ir.Node]) -> None:
    """Values joined by `joined`, directly or in a row, get the largest scale of any of them.

    One whose other readers would lose too much keeps its own for them, and has a second pair before the Concat.
    """
    groups: list[set[ir.Value]] = []
    for concat in joined:
        own = {concat.outputs[0], *(_behind(value) or value for value in concat.inputs if value is not None)}
        touching = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own] + [own.union(*touching)]
    for group in groups:
        pairs = [pair for value in group for pair in _pairs(value)]
        largest = max(pairs, key=_scale)
        for pair in (pair for pair in pairs if _scale(pair) * _NEAR >= _scale(largest)):
            for node in (pair, *pair.outputs[0].consumers()):
                node.replace_input_with(1, largest.inputs[1])
        for concat in (node for node in joined if node.outputs[0] in group):
            for index, value in enumerate(concat.inputs):
                concat.replace_input_with(index, _paired(graph, concat, value, largest.inputs))


def _scale(pair: ir.Node) -> float:
    return float(pair.inputs[1].const_value.numpy())  # type: ignore[union-attr]


def _paired(graph: ir.Graph, concat: ir.Node, value: ir.Value | None, like: Sequence[ir.Value | None]) -> ir.Value:
    """`value` through the pair that it has, or through a new one with the scale and zero point of `like`."""
    value = _behind(value) or value
    if value is None:
        raise ValueError("a Concat has no empty input")
    for pair in _pairs(value):
        for node in pair.outputs[0].consumers():
            if node.op_type == "DequantizeLinear" and pair.inputs[1] is like[1]:
                return node.outputs[0]
    quantize = ir.node("QuantizeLinear", [value, *like[1:]], name=f"{value.name}_QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [*quantize.outputs, *like[1:]], name=f"{value.name}_DequantizeLinear")
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{value.name}_joined_quantized", f"{value.name}_joined"
    _retype(dequantize.outputs[0], value)
    graph.insert_before(concat, [quantize, dequantize])
    return dequantize.outputs[0]


def _retype(value: ir.Value, like: ir.Value | None) -> None:
    if like is not None and like.dtype is not None:
        value.dtype, value.shape = like.dtype, like.shape
