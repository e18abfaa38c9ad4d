"""The workbench of the rewrites: constants seen through shape operators, new nodes, initializers.

    bench = Bench(model)
    packed = bench.packed(matmul.inputs[1])         # int8 weights behind DequantizeLinear, or None
    sum_ = bench.node(matmul, "Add", [x, bench.initializer(bias)])

Exporters put Transpose, Slice, Concat and Unsqueeze between a weight and its consumer. `constant`
and `packed` compute through them, so that a rewrite sees the array that the consumer sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.scopes import SCOPES

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
SHAPE_OPERATORS = ("Transpose", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape")


@dataclass(frozen=True)
class Packed:
    """A quantized constant: `values` are int8, `scales` float32 of the same shape, zero point 0."""

    values: np.ndarray
    scales: np.ndarray

    def axes(self) -> list[int]:
        """The axes along which the scale varies: none for per tensor, one for per channel."""
        return [axis for axis in range(self.scales.ndim) if (self.scales != np.take(self.scales, [0], axis)).any()]

    def along(self, axis: int) -> np.ndarray | None:
        """The scales as a vector along `axis`; None where they vary along another axis too."""
        return self._vector(axis) if set(self.axes()) <= {axis} else None

    def _vector(self, axis: int) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(self.scales, axis, 0).reshape(self.scales.shape[axis], -1)[:, 0])


class Bench:
    """One graph under rewriting. It hands out names, so there is one bench a graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        inner = [graph for node in model.graph.all_nodes() for graph in _subgraphs(node)]
        self._taken = {
            value.name
            for graph in (model.graph, *inner)
            for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs))
        }
        self._count = 0
        self._packed: dict[ir.Value, Packed | None] = {}
        self._constants: dict[ir.Value, np.ndarray | None] = {}

    def nodes(self, *operators: str) -> list[ir.Node]:
        """The nodes of these types in the default domain, in order; safe to change while looping."""
        return [node for node in self.graph if node.op_type in operators and node.domain in ("", "ai.onnx")]

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The array of an initializer, a Constant, or shape operators on those; else None."""
        if value is None:
            return None
        if value not in self._constants:
            self._constants[value] = self._constant(value)
        return self._constants[value]

    def packed(self, value: ir.Value | None) -> Packed | None:
        """The int8 constant behind DequantizeLinear (and shape operators after it); else None."""
        if value is None:
            return None
        if value not in self._packed:
            self._packed[value] = self._unpack(value)
        return self._packed[value]

    def initializer(self, array: np.ndarray) -> ir.Value:
        array = np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        name = self._name()
        value = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        at: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        after: bool = False,
    ) -> ir.Node:
        """A new node before (or after) `at`; its outputs have fresh names."""
        if domain:
            self.model.opset_imports[domain] = 1
        node = ir.node(operator, list(inputs), dict(attributes or {}), domain=domain, num_outputs=outputs)
        node.metadata_props.update({SCOPES: at.metadata_props[SCOPES]} if SCOPES in at.metadata_props else {})
        (self.graph.insert_after if after else self.graph.insert_before)(at, node)
        for value in node.outputs:
            value.name = self._name()
        return node

    def dequantized(self, at: ir.Node, packed: Packed) -> ir.Value | None:
        """A DequantizeLinear of `packed` before `at`; None where its scale varies along two axes.

        The zero point is written out: without one ONNX Runtime leaves the consumer in float.
        """
        axes = packed.axes()
        if len(axes) > 1:
            return None
        if not axes:
            scale, zero = np.asarray(packed.scales.flat[0]), np.zeros((), packed.values.dtype)
            attributes = {}
        else:
            scale, attributes = packed._vector(axes[0]), {"axis": axes[0]}
            zero = np.zeros(scale.shape, packed.values.dtype)
        inputs = [self.initializer(packed.values), self.initializer(scale), self.initializer(zero)]
        return self.node(at, "DequantizeLinear", inputs, attributes).outputs[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Every user of `old` takes `new`; a graph output keeps its name."""
        new.shape, new.type = new.shape if old.shape is None else old.shape, old.type or new.type
        if old.is_graph_output():
            old.name, new.name = self._name(), old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def _name(self) -> str:
        while (name := f"t{self._count}") in self._taken:
            self._count += 1
        self._taken.add(name)
        return name

    def _constant(self, value: ir.Value) -> np.ndarray | None:
        if value.is_graph_input():
            return None
        if value.const_value is not None:
            return value.const_value.numpy()
        node = value.producer()
        if node is None or node.op_type not in SHAPE_OPERATORS or node.domain:
            return None
        sources = [self.constant(source) for source in self._data(node)]
        if any(source is None for source in sources):
            return None
        return self._shaped(node, [source for source in sources if source is not None])

    def _unpack(self, value: ir.Value) -> Packed | None:
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type == "DequantizeLinear":
            return self._stored(node)
        if node.op_type not in SHAPE_OPERATORS:
            return None
        sources = [packed for source in self._data(node) if (packed := self.packed(source)) is not None]
        if len(sources) != len(self._data(node)):
            return None
        values = self._shaped(node, [source.values for source in sources])
        scales = self._shaped(node, [source.scales for source in sources])
        return None if values is None or scales is None else Packed(values, scales)

    def _stored(self, node: ir.Node) -> Packed | None:
        stored, scale = self.constant(node.inputs[0]), self.constant(node.inputs[1])
        zero = self.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if stored is None or scale is None or stored.dtype != np.int8 or (zero is not None and zero.any()):
            return None
        if scale.size > 1:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            scale = scale.reshape([-1 if i == axis % stored.ndim else 1 for i in range(stored.ndim)])
        return Packed(stored, np.broadcast_to(scale.astype(np.float32), stored.shape))

    @staticmethod
    def _data(node: ir.Node) -> list[ir.Value | None]:
        return list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]

    def _shaped(self, node: ir.Node, arrays: list[np.ndarray]) -> np.ndarray | None:
        """What a shape operator makes of `arrays`; None where its own arguments are not constant."""
        array = arrays[0]
        if node.op_type == "Transpose":
            return array.transpose(node.attributes["perm"].as_ints() if "perm" in node.attributes else None)
        if node.op_type == "Concat":
            return np.concatenate(arrays, node.attributes["axis"].as_int())
        given = [self.constant(value) for value in node.inputs[1:]]
        if any(argument is None and value is not None for argument, value in zip(given, node.inputs[1:], strict=True)):
            return None
        lists = [None if argument is None else [int(i) for i in np.atleast_1d(argument)] for argument in given]
        if node.op_type == "Slice":
            starts, ends = lists[0] or [], lists[1] or []
            axes = (lists[2] if len(lists) > 2 else None) or list(range(len(starts)))
            steps = (lists[3] if len(lists) > 3 else None) or [1] * len(starts)
            if any(step < 0 for step in steps):
                return None
            cut = [slice(None)] * array.ndim
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
                cut[axis] = slice(start, min(end, array.shape[axis]), step)
            return array[tuple(cut)]
        if node.op_type == "Unsqueeze" and lists:
            return np.expand_dims(array, tuple(lists[0] or ()))
        if node.op_type == "Squeeze":
            return np.squeeze(array, tuple(lists[0]) if lists and lists[0] is not None else None)
        if node.op_type == "Reshape" and lists and lists[0] is not None and 0 not in lists[0]:
            return array.reshape(lists[0])
        return None


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The bodies of If, Loop and Scan."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found
