"""Float convolutions of one dimension in an ONNX graph as ones of two, of height one.

    counts = widen(model)         # in place; {"convolutions": 16, "carried": 22, "doors": 2}

A convolution over (rows, channels, steps) becomes one over (rows, channels, 1, steps), with an Unsqueeze
before it and a Squeeze behind. What lies between two of them and does not care (activations, norms,
poolings, sums, concatenations of channels, Q/DQ pairs) is carried along, so that only the doors of
a stretch keep their Unsqueeze and Squeeze. The numbers computed are the same. Kernels of two
dimensions are the ones that runtimes have in blocked layouts; source: ONNX Runtime, NchwcTransformer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from petra_deploy.worker.artifact.tidy import strip
from petra_deploy.worker.artifact.tidy.bench import Bench

AXIS = 2  # where the new dimension of size one stands
ELEMENTWISE = frozenset({
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Gelu", "Mish", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Clip", "Identity", "Cast",
    "QuantizeLinear", "DequantizeLinear", "BatchNormalization",
})  # fmt: skip
JOINING = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Concat"})
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
WHOLE = frozenset({"GlobalAveragePool", "GlobalMaxPool"})


def widen(model: ir.Model) -> dict[str, int]:
    """Rewrite `model` in place; shapes of its values should be known (worker/artifact/inferred.py)."""
    return _Planes(Bench(model)).run()


class _Planes:
    """`lifted` maps a value of three dimensions to the same numbers in four."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.lifted: dict[ir.Value, ir.Value] = {}
        self.doors: list[ir.Node] = []
        self.counts = {"convolutions": 0, "carried": 0}

    def run(self) -> dict[str, int]:
        for node in list(self.bench.graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Conv" and (kernel := self._kernel(node)) is not None:
                self.counts["convolutions"] += 1
                inputs = [self._lift(node, node.inputs[0]), kernel, *node.inputs[2:]]
                self._become(node, inputs, _spatial(node))
            elif self._lifted(node.inputs[0] if node.inputs else None) is not None or node.op_type in JOINING:
                self._carry(node)
        strip.rewrite(self.bench)
        return {**self.counts, "doors": sum(door.graph is not None for door in self.doors)}

    def _carry(self, node: ir.Node) -> None:
        """Let a node that does not care work on four dimensions, where its input already has them."""
        first = self._lifted(node.inputs[0])
        kind, rest = node.op_type, node.inputs[1:]
        if kind in JOINING:
            if (inputs := self._joined(node)) is not None:
                self._become(node, inputs, _counted_from_the_left(node), carried=True)
        elif first is None or len(node.outputs) > 1:
            return
        elif kind in ELEMENTWISE:
            per_step = kind in ("QuantizeLinear", "DequantizeLinear") and _axis(node) == 2 and _size(rest[0]) != 1
            if not per_step:
                self._become(node, [first, *rest], _counted_from_the_left(node), carried=True)
        elif kind in WHOLE:
            self._become(node, [first], dict(node.attributes), carried=True)
        elif kind in POOLS:
            self._become(node, [first], _spatial(node), carried=True)
        elif kind == "Pad" and (pads := self._pads(node)) is not None:
            self._become(node, [first, pads, *rest[1:]], dict(node.attributes), carried=True)
        elif kind == "Flatten" and _axis(node) == 1:
            node.replace_input_with(0, first)  # two dimensions come out either way

    def _become(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: dict[str, ir.Attr], carried: bool = False
    ) -> None:
        """A node of four dimensions in the place of `node`, and a Squeeze for whoever wants three."""
        old = node.outputs[0]
        fresh = self.bench.node(node, node.op_type, inputs, attributes)
        fresh.name, fresh.outputs[0].type = node.name, old.type
        squeezed = self._door(node, "Squeeze", fresh.outputs[0])
        self.bench.replace(old, squeezed)
        self.lifted[squeezed] = fresh.outputs[0]
        self.counts["carried"] += carried

    def _lifted(self, value: ir.Value | None) -> ir.Value | None:
        return self.lifted.get(value) if value is not None else None

    def _lift(self, node: ir.Node, value: ir.Value | None) -> ir.Value:
        if value is None:
            raise TypeError("a node without its data was let through")
        if value not in self.lifted:
            self.lifted[value] = self._door(node, "Unsqueeze", value)
        return self.lifted[value]

    def _door(self, node: ir.Node, operator: str, value: ir.Value) -> ir.Value:
        door = self.bench.node(node, operator, [value, self.bench.initializer(np.array([AXIS], np.int64))])
        door.name, door.outputs[0].type = node.name, value.type
        self.doors.append(door)
        return door.outputs[0]

    def _kernel(self, node: ir.Node) -> ir.Value | None:
        """The float kernel with a height of one; None for other convolutions, and for int8 or computed kernels."""
        array = self.bench.constant(node.inputs[1])
        if array is None or array.ndim != 3:
            return None
        return self.bench.initializer(np.expand_dims(array, AXIS))

    def _joined(self, node: ir.Node) -> list[ir.Value | None] | None:
        """All inputs in four dimensions, or ready to be broadcast to those; None where that cannot be."""
        if not any(self._lifted(value) is not None for value in node.inputs):
            return None
        if node.op_type == "Concat" and _axis(node) == 2:
            return None
        makers: list[Callable[[], ir.Value]] = []
        for value in node.inputs:
            if value is None:
                return None
            array = self.bench.constant(value)
            if array is None:
                if self._lifted(value) is None and (value.shape is None or value.shape.rank() != 3):
                    return None
                makers.append(lambda value=value: self._lift(node, value))  # type: ignore[misc]
            elif array.size == 1 or array.ndim == 1:
                makers.append(lambda value=value: value)  # type: ignore[misc]
            elif array.ndim > 3:
                return None
            else:
                wide = np.expand_dims(array.reshape((1,) * (3 - array.ndim) + array.shape), AXIS)
                makers.append(lambda wide=wide: self.bench.initializer(wide))  # type: ignore[misc]
        return [make() for make in makers]

    def _pads(self, node: ir.Node) -> ir.Value | None:
        pads = self.bench.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if pads is None or pads.size != 6 or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return None
        begin, end = np.split(pads.astype(np.int64), 2)
        return self.bench.initializer(np.concatenate([np.insert(begin, AXIS, 0), np.insert(end, AXIS, 0)]))


def _spatial(node: ir.Node) -> dict[str, ir.Attr]:
    """The attributes of a convolution or pooling, with those of the new dimension before those of the steps."""
    made = dict(node.attributes)
    for name, one in (("kernel_shape", [1]), ("strides", [1]), ("dilations", [1])):
        if name in made:
            made[name] = ir.AttrInt64s(name, [*one, *made[name].as_ints()])
    if "pads" in made:
        begin, end = made["pads"].as_ints()
        made["pads"] = ir.AttrInt64s("pads", [0, begin, 0, end])
    return made


def _axis(node: ir.Node) -> int:
    """Of three dimensions, counted from the left."""
    return int(node.attributes["axis"].as_int()) % 3 if "axis" in node.attributes else 1


def _counted_from_the_left(node: ir.Node) -> dict[str, ir.Attr]:
    made = dict(node.attributes)
    return made | ({"axis": ir.AttrInt64("axis", _axis(node))} if "axis" in made else {})


def _size(value: ir.Value | None) -> int:
    if value is None or value.const_value is None:
        return 0
    return int(value.const_value.size)
