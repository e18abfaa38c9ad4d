"""Where one position of a sequence is all that is read, select it before what is computed, not behind.

    counts = select_early(model)        # in place; {"selections": 1, "moved": 14, "products": 4}

An encoder that classifies by its first token computes, in its last layer, every other token for nothing. A selection
of one index along an axis moves up through operators that treat the positions of that axis alike (elementwise,
norms and softmax over other axes, rows of products, transposes, reshapes that keep the axis), as long as nobody
reads the rest of what it selects from. The numbers computed are the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from petra_deploy.worker.artifact.inferred import PRODUCT
from petra_deploy.worker.artifact.tidy import strip
from petra_deploy.worker.artifact.tidy.bench import Bench

UNARY = frozenset({
    "Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Gelu", "Mish",
    "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Clip", "Identity", "Cast", "Not", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "And", "Or"})
ROWS = frozenset({"LayerNormalization", "Softmax", "LogSoftmax"})
PRODUCTS = frozenset({"MatMul", "Gemm", PRODUCT})


@dataclass(frozen=True)
class _Pick:
    axis: int  # counted from the left
    index: int


def select_early(model: ir.Model) -> dict[str, int]:
    """Rewrite `model` in place; shapes of its values should be known (worker/artifact/inferred.py)."""
    return _Selections(Bench(model)).run()


class _Selections:
    """`picks` are the nodes that select one index and keep the axis."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.picks: dict[ir.Node, _Pick] = {}
        self.moved = self.products = 0

    def run(self) -> dict[str, int]:
        found = {node: read for node in self.bench.nodes("Gather", "Slice") if (read := self._read(node))}
        for node, (pick, scalar) in found.items():
            source = node.inputs[0]
            users = source.consumers() if source is not None else ()
            if source is not None and all(user in self.picks or found.get(user, (None,))[0] == pick for user in users):
                self._normalize(node, source, pick, scalar)
        count, todo = len(self.picks), list(self.picks)
        while todo:
            node = todo.pop()
            source = node.inputs[0]
            if node not in self.picks or source is None or (agreed := self._agreed(source)) is None:
                continue
            before = set(self.picks)
            if (selected := self._through(source, agreed)) is not None:
                for user in list(source.consumers()):
                    del self.picks[user]
                    self.bench.replace(user.outputs[0], selected)
                    self.bench.graph.remove(user, safe=True)
                if (maker := source.producer()) is not None:
                    self.bench.graph.remove(maker, safe=True)  # else it would still read what it is computed from
                self.moved += 1
            todo += [new for new in self.picks if new not in before]
        if self.moved:
            passes.TopologicalSortPass()(self.bench.model)
        strip.rewrite(self.bench)
        return {"selections": count, "moved": self.moved, "products": self.products}

    def _read(self, node: ir.Node) -> tuple[_Pick, bool] | None:
        """What a Gather of one index or a Slice of one position selects, and whether the axis is dropped."""
        source = node.inputs[0]
        if source is None or source.shape is None or self.bench.constant(source) is not None:
            return None
        given = [self.bench.constant(value) for value in node.inputs[1:]]
        if any(g is None or g.size != 1 for g in given):
            return None
        numbers = [int(g.reshape(-1)[0]) for g in given if g is not None]
        rank = source.shape.rank()
        if node.op_type == "Gather":
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
            return _Pick(axis % rank, numbers[0]), all(g is None or g.ndim == 0 for g in given)
        if len(numbers) < 3 or numbers[3:] not in ([], [1]):
            return None
        index, end, axis = numbers[:3]
        alone = end == index + 1 != 0 or (index == -1 and end > 2**30)
        return (_Pick(axis % rank, index), False) if alone else None

    def _normalize(self, node: ir.Node, source: ir.Value, pick: _Pick, scalar: bool) -> None:
        """Put a pick in its place, and what drops the axis."""
        out = self._pick(node, source, pick)
        if scalar:
            axes = self.bench.initializer(np.array([pick.axis], np.int64))
            out = self.bench.node(node, "Squeeze", [out, axes]).outputs[0]
        self.bench.replace(node.outputs[0], out)
        self.bench.graph.remove(node, safe=True)

    def _pick(self, at: ir.Node, value: ir.Value, pick: _Pick) -> ir.Value:
        index = self.bench.initializer(np.array([pick.index], np.int64))
        node = self.bench.node(at, "Gather", [value, index], {"axis": pick.axis})
        node.name = at.name
        if value.shape is not None:
            node.outputs[0].shape = ir.Shape([1 if i == pick.axis else d for i, d in enumerate(value.shape)])
        node.outputs[0].type = value.type
        self.picks[node] = pick
        return node.outputs[0]

    def _agreed(self, value: ir.Value) -> _Pick | None:
        """What all that read `value` select of it; None where one reads more."""
        if value.is_graph_output() or value.producer() is None:
            return None
        found = {self.picks.get(user) for user in value.consumers()}
        return found.pop() if len(found) == 1 else None

    def _through(self, value: ir.Value, pick: _Pick) -> ir.Value | None:
        """The selected part of `value`, computed from selected inputs; None where its operator does not permit."""
        node = value.producer()
        if node is None or value.shape is None or len(node.outputs) > 1:
            return None
        if node.domain not in ("", "ai.onnx") and node.op_type != PRODUCT:
            return None
        wanted = self._inputs(node, pick, value.shape.rank())
        if wanted is None:
            return None
        inputs: list[ir.Value | None] = []
        for source, axis in zip(node.inputs, wanted, strict=True):
            if source is None or axis is None:
                inputs.append(source)
            elif (array := self.bench.constant(source)) is not None:
                inputs.append(self.bench.initializer(np.take(array, [pick.index], axis)))
            else:
                inputs.append(self._pick(node, source, _Pick(axis, pick.index)))
        if node.op_type == "Reshape":
            inputs[1] = self._target(node, value, pick.axis)
        fresh = self.bench.node(node, node.op_type, inputs, dict(node.attributes), domain=node.domain)
        fresh.name, fresh.outputs[0].type = node.name, value.type
        fresh.outputs[0].shape = ir.Shape([1 if i == pick.axis else d for i, d in enumerate(value.shape)])
        self.products += node.op_type in PRODUCTS
        return fresh.outputs[0]

    def _inputs(self, node: ir.Node, pick: _Pick, rank: int) -> list[int | None] | None:
        """For each input the axis along which it is to be selected, or None; no list where it cannot be done."""
        kind, axis, count = node.op_type, pick.axis, len(node.inputs)
        ranks = [v.shape.rank() if v is not None and v.shape is not None else None for v in node.inputs]
        rest: list[int | None] = [None] * (count - 1)
        if kind in UNARY:
            whole = kind not in ("QuantizeLinear", "DequantizeLinear")  # else of one scale for all
            whole = whole or all(s is None or _entries(self.bench, s) == 1 for s in node.inputs[1:])
            return [axis, *rest] if whole else None
        if kind in BROADCAST:
            return self._broadcast(node, axis, rank)
        if kind in ROWS:
            normed = (node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % rank
            apart = axis < normed if kind == "LayerNormalization" else axis != normed
            return [axis, *rest] if apart else None
        if kind == PRODUCT:  # a, b, scale of a ...; one scale for all rows
            rows = axis == rank - 2 and ranks[0] == rank and _entries(self.bench, node.inputs[2]) == 1
            return [axis, *rest] if rows else None
        if kind == "MatMul" and axis == rank - 2 and ranks[0] == rank:
            return [axis, None]
        if kind == "Gemm" and axis == 0 and not node.attributes.get("transA", ir.AttrInt64("transA", 0)).as_int():
            bias = node.inputs[2] if count > 2 else None
            whole = bias is None or (bias.shape is not None and (bias.shape.rank() < 2 or bias.shape[0] == 1))
            return [0, *rest] if whole else None
        if kind == "Transpose" and "perm" in node.attributes:
            return [node.attributes["perm"].as_ints()[axis]]
        if kind == "Reshape":
            return [axis, None] if self._target(node, node.outputs[0], axis) is not None else None
        return self._of_axes(node, axis, ranks[0])

    def _of_axes(self, node: ir.Node, axis: int, rank: int | None) -> list[int | None] | None:
        """Of operators that name other axes: Squeeze, Unsqueeze, Slice."""
        rest: list[int | None] = [None] * (len(node.inputs) - 1)
        position = {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3}.get(node.op_type)
        if position is None or len(node.inputs) <= position or rank is None:
            return None
        array = self.bench.constant(node.inputs[position])
        if array is None:
            return None
        out = rank + array.size if node.op_type == "Unsqueeze" else rank
        axes = sorted(int(a) % out for a in array.reshape(-1))
        if node.op_type == "Slice":
            return None if axis in axes else [axis, *rest]
        if node.op_type == "Unsqueeze":
            return None if axis in axes else [axis - sum(a < axis for a in axes), *rest]
        return [[i for i in range(rank) if i not in axes][axis], *rest]

    def _broadcast(self, node: ir.Node, axis: int, rank: int) -> list[int | None] | None:
        places: list[int | None] = []
        sizes: set[int | str | None] = set()
        for value in node.inputs:
            if value is None or value.shape is None:
                return None
            place = axis - (rank - value.shape.rank())
            size = value.shape[place] if place >= 0 else 1
            places.append(None if size == 1 else place)
            if size != 1:
                sizes.add(size if isinstance(size, int) else size.value)
        return places if len(sizes) == 1 and None not in sizes else None  # else one of them may be spread

    def _target(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value | None:
        """The shape that a Reshape is to give, of one position along `axis`; None where it does not keep that axis."""
        source, target = node.inputs[0], self.bench.constant(node.inputs[1])
        if source is None or source.shape is None or value.shape is None or target is None:
            return None
        tails = [list(shape)[axis:] for shape in (source.shape, value.shape)]
        if any(not tail or not all(isinstance(d, int) for d in tail) for tail in tails):
            return None
        if tails[0][0] != tails[1][0] or math.prod(tails[0]) != math.prod(tails[1]):
            return None
        wanted = [*(int(d) for d in target.reshape(-1)[:axis]), 1, *tails[1][1:]]
        return self.bench.initializer(np.array(wanted, np.int64))


def _entries(bench: Bench, value: ir.Value | None) -> int:
    array = bench.constant(value)
    return 0 if array is None else int(array.size)
