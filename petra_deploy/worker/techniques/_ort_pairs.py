"""Q/DQ pairs that cost more than they give: those read by operators that compute in float.

    dropped = drop(model, source)            # both ir.Model; `model` is what quantize_static made of `source`

onnxruntime's quantizer rounds the output of every layer, and whoever reads a rounded tensor gets it rounded: a
residual that is added in float, a bias, the model's own answer. That is a conversion there and one back, and a loss.
Such readers get the tensor as it was; ONNX Runtime's kernels put out float at no cost (MatMulIntegerToFloat).
"""

import onnx_ir as ir
import onnx_ir.passes.common as passes

_LINEAR = ("Gemm", "MatMul")
_WEIGHTED = ("Conv", *_LINEAR)
_JOINING = ("Add", "Mul", "Concat")
_MOVING = frozenset({
    "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze",
    "Unsqueeze", "Resize", "Pad",
})  # fmt: skip


def drop(model: ir.Model, source: ir.Model) -> int:
    """Change `model` in place; returns how many readers get float in place of a rounded tensor.

    A pair stays where the quantizer took out a ReLU before it, since its range does that work, and behind operators
    whose integer form puts out integers only.
    """
    before = {value.name: node.op_type for node in source.graph for value in node.outputs}
    changed = 0
    for node in list(model.graph):
        value = _behind(node)
        if value is None:
            continue
        maker = value.producer()
        name = (value.name or "").removesuffix("_QuantizeLinear_Input")  # an output of the graph is renamed
        if maker is not None and (before.get(name) != maker.op_type or not _puts_out_float(maker)):
            continue
        for use in list(node.outputs[0].uses()):
            if not _on_integers(use.node):
                use.node.replace_input_with(use.idx, value)
                changed += 1
        if node.outputs[0].is_graph_output():
            _give_out(model.graph, node.outputs[0], value)
            changed += 1
    passes.RemoveUnusedNodesPass()(model)
    return changed


def _behind(node: ir.Node) -> ir.Value | None:
    """x, where `node` is the DequantizeLinear of DequantizeLinear(QuantizeLinear(x))."""
    quantize = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
    return quantize.inputs[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else None


def _puts_out_float(node: ir.Node) -> bool:
    """As it is, or from integers."""
    return node.op_type in _LINEAR or not (node.inputs and all(map(_paired, node.inputs[:2])))


def _on_integers(node: ir.Node) -> bool:
    """Whether ONNX Runtime has an integer form of the operator as it stands here."""
    if node.op_type in _WEIGHTED:
        return all(map(_paired, node.inputs[:2]))
    onward = any(user.op_type == "QuantizeLinear" for user in node.outputs[0].consumers())
    if node.op_type in _JOINING:
        return onward and all(map(_paired, node.inputs))
    return onward and node.op_type in _MOVING


def _paired(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _give_out(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """The graph's output `old` becomes `new`, under the same name; not where `new` is one already, or an input."""
    if new.is_graph_output() or new.is_graph_input():
        return
    new.shape, new.type = old.shape, old.type
    name, old.name = old.name, f"{new.name}_rounded"
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
