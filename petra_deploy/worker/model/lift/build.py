"""From an ONNX graph to a flat Tape: one node after the other, each run on example rows as it is made.

    flat = build(onnx.load(path), [rows of two, rows of three])

Running along tells the shapes, by which sizes that an exporter wrote down become computed ones
(reshape.py), and by which layers are told apart (BatchNorm1d or 2d). Constants are folded first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from torch import Tensor, nn

from petra_deploy.worker.model.lift import layers, recurrent, reshape
from petra_deploy.worker.model.lift.constants import attribute, constant, from_proto, literal
from petra_deploy.worker.model.lift.operators import OPERATORS
from petra_deploy.worker.model.lift.places import Places, where
from petra_deploy.worker.model.lift.tape import Argument, Held, Literal, Ref, Step, Tape, run
from petra_deploy.worker.model.lift.values import Unliftable, Value, tensor
from petra_deploy.worker.quiet import cause

CONTROL = ("If", "Loop", "Scan", "SequenceMap")
_ZERO = frozenset(("Expand", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Identity", "Cast", "Split",
                   "Gather", "Tile"))  # fmt: skip


@dataclass
class Flat:
    """The steps in order, the module path of each, and what its values look like in each run."""

    tape: Tape
    steps: list[Step] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)  # of floating-point tensors


def build(model: onnx.ModelProto, runs: Sequence[Sequence[Tensor]], *, rigid: bool) -> Flat:
    """`runs`: the inputs, once for each batch size tried; `rigid`: only the batch may change. Raises Unliftable."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    builder = _Builder(model.graph, opset, runs, rigid)
    for index, node in enumerate(model.graph.node):
        builder.add(index, node)
        builder.forget(node)
    return builder.finish()


def unknown(graph: onnx.GraphProto) -> str | None:
    """Which operators have no counterpart, as a reason; None where all have."""
    types = Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}" for node in graph.node
    )
    if found := [name for name in types if name in CONTROL]:
        return f"its control flow ({', '.join(sorted(found))}) is no sequence of layers"
    known = {*OPERATORS, *layers.LAYERS, *recurrent.KINDS, "Constant", "com.microsoft.Gelu"}
    if found := sorted(set(types) - known):
        return f"operator{'s' if len(found) > 1 else ''} {', '.join(found)} cannot be lifted"
    return None


class _Builder:
    def __init__(self, graph: onnx.GraphProto, opset: int, runs: Sequence[Sequence[Tensor]], rigid: bool) -> None:
        self.graph, self.opset, self.rigid = graph, opset, rigid
        self.constants = {t.name: from_proto(t) for t in graph.initializer}
        self.names = [value.name for value in graph.input if value.name not in self.constants]
        self.runs: list[dict[str, Value]] = [dict(zip(self.names, given, strict=True)) for given in runs]
        self.users = Counter(name for node in graph.node for name in node.input)
        self.users.update(value.name for value in graph.output)
        self.unread = Counter(self.users)
        self.readers = {name: node for node in graph.node for name in node.input}
        self.zeros, self.skipped = set[str](), set[int]()
        self.tape = Tape(tuple(self.names), tuple(value.name for value in graph.output), ())
        self.flat = Flat(self.tape)
        self.joined: dict[str, tuple[int, list[str]]] = {}  # output of Concat -> its axis and parts, before the batch
        self.places = Places(self.tape, graph, self.constants)
        self.made: dict[tuple[Any, ...], str] = {}  # layer by its weights -> path
        for name in self.names:
            self._note(name)

    def add(self, index: int, node: onnx.NodeProto) -> None:
        if index in self.skipped:
            return
        given = {a.name: attribute(a) for a in node.attribute}
        given |= {"opset": self.opset, "outputs": len([name for name in node.output if name])}
        if self._is_zero(node, given):
            self.zeros.update(node.output)
        try:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = constant(given)
            elif all(name in self.constants for name in node.input if name) and self._foldable(node):
                self._fold(node, given)
            elif node.op_type in recurrent.KINDS:
                self._recurrent(node, given)
            elif not self._layer(node, given):
                self._operator(node, given)
        except Unliftable as reason:
            raise Unliftable(f"{node.op_type} ({node.name or node.output[0]}): {reason}") from None

    def forget(self, node: onnx.NodeProto) -> None:
        """Let go of the example values that nothing reads after this node."""
        self.unread.subtract(node.input)
        inner = [name for name in self.runs[0] if ":" in name and name.partition(":")[0] in node.output]
        for name in (*node.input, *node.output, *inner):
            if not self.unread[name]:
                for values in self.runs:
                    values.pop(name, None)

    def _foldable(self, node: onnx.NodeProto) -> bool:
        return node.op_type in OPERATORS and node.op_type != "Dropout"

    def _fold(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        values = [literal(self.constants[name], node, place) if name else None for place, name in enumerate(node.input)]
        try:
            results = OPERATORS[node.op_type](given, *values)
        except Unliftable:
            raise
        except Exception as error:
            raise Unliftable(cause(error)) from error
        for name, value in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
            self.constants[name] = tensor(value)

    def _operator(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        if node.op_type not in OPERATORS:
            raise Unliftable("its weights are computed, or of another form than torch's layer has")
        inputs = tuple(self._argument(node, place, name) for place, name in enumerate(node.input))
        if node.op_type == "Reshape":
            given = self._with_plan(given, inputs, node)
        elif node.op_type == "Concat" and given["axis"] == 0 and all(isinstance(each, Ref) for each in inputs):
            self.joined[node.output[0]] = (0, list(node.input))
            self.unread.update(node.input)  # picked from later, perhaps
        elif direct := self._direct(node, given):
            inputs = (Ref(direct[0]), Literal(direct[1]))
        self._step(Step(node.op_type, inputs, tuple(node.output), given), where(node))

    def _argument(self, node: onnx.NodeProto, place: int, name: str) -> Argument:
        if not name:
            return Literal(None)
        if name not in self.constants:
            return Ref(name)
        value = literal(self.constants[name], node, place)
        return Held(self.places.value(name, value)) if isinstance(value, Tensor) else Literal(value)

    def _with_plan(self, given: dict[str, Any], inputs: tuple[Argument, ...], node: onnx.NodeProto) -> dict[str, Any]:
        data = [values.get(node.input[0]) for values in self.runs]
        seen = [self.tape.value(inputs[1], values) for values in self.runs]
        if not all(isinstance(value, Tensor) for value in data) or not all(isinstance(each, list) for each in seen):
            return given
        settled = self.rigid or isinstance(inputs[1], Literal)
        target = [sizes[0] if settled and len(set(sizes)) == 1 else None for sizes in zip(*seen, strict=True)]
        if given.get("allowzero") and 0 in target:
            return given
        afters = [OPERATORS["Reshape"](given, x, sizes) for x, sizes in zip(data, seen, strict=True)]
        found = reshape.plan([tuple(x.shape) for x in data if x is not None], [tuple(a.shape) for a in afters], target)
        return given if found is None else {**given, "plan": found}

    def _direct(self, node: onnx.NodeProto, given: dict[str, Any]) -> tuple[str, int] | None:
        """Of a pick from several joined values: the one of them that it falls into, and the place in that one."""
        joined = self.joined.get(node.input[0])
        index = self.constants.get(node.input[1]) if node.op_type == "Gather" else None
        if joined is None or index is None or index.dim() or given.get("axis", 0) != joined[0]:
            return None
        if any(name not in self.flat.shapes for name in joined[1]):
            return None
        sizes = [self.flat.shapes[name][0][joined[0]] for name in joined[1]]
        place = int(index) % sum(sizes)
        for name, size in zip(joined[1], sizes, strict=True):
            if place < size:
                return name, place
            place -= size
        return None

    def _layer(self, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
        """Add the node as a layer; False where it is no layer."""
        constants = {place: self.constants[name] for place, name in enumerate(node.input) if name in self.constants}
        table = node.op_type == "Gather" and 0 in constants and 1 not in constants
        maker = layers.embedding if table else layers.LAYERS.get(node.op_type)
        weight = 0 if table else 1
        if maker is None or weight not in constants or not constants[weight].is_floating_point():
            return False
        source = node.input[1 if table else 0]
        data = self.runs[0].get(source)
        if not isinstance(data, Tensor):
            return False
        adding = self._adding(node, constants) if node.op_type == "MatMul" else None
        bias = adding and next(name for name in adding.input if name in self.constants)
        kept = sorted((name, value) for name, value in given.items() if name != "outputs")
        key = (node.op_type, tuple(node.input[:1] if table else node.input[1:]), bias, repr(kept))
        whole = constants[weight].dim() > 1  # equal vectors are merged by exporters, shared by nobody
        path = self.made.get(key) if whole else None
        if path is None:
            about = layers.Node(given, constants, len([n for n in node.input if n]), data.dim(), self.places.parameter)
            layer = maker(about)
            if layer is None:
                return False
            if bias and isinstance(layer, nn.Linear):
                layer.bias = self.places.parameter(self.constants[bias])
            path = self.made[key] = self._place(node, layer)
        outputs = tuple(node.output[:1])
        if adding:
            outputs = (adding.output[0],)
            self.skipped.add(next(i for i, n in enumerate(self.graph.node) if n is adding))
        self._step(Step(node.op_type, (self._rows(source) if table else Ref(source),), outputs, layer=path), path)
        return True

    def _place(self, node: onnx.NodeProto, layer: nn.Module) -> str:
        return self.places.layer(layer, node, [name for name in node.input if name in self.constants])

    def _adding(self, node: onnx.NodeProto, constants: dict[int, Tensor]) -> onnx.NodeProto | None:
        """The Add that alone reads this product, where it adds a constant to each feature."""
        name, reader = node.output[0], self.readers.get(node.output[0])
        if reader is None or self.users[name] != 1 or reader.op_type != "Add" or constants[1].dim() != 2:
            return None
        bias = self.constants.get(reader.input[1] if reader.input[0] == name else reader.input[0])
        return reader if bias is not None and tuple(bias.shape) == (constants[1].shape[1],) else None

    def _rows(self, source: str) -> Argument:
        """Of an embedding. In ONNX indices below zero count from the end, which torch's layer refuses."""
        if any(isinstance(v := values[source], Tensor) and bool((v < 0).any()) for values in self.runs):
            raise Unliftable("indices below zero")
        return Ref(source)

    def _recurrent(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        constants = {place: self.constants[name] for place, name in enumerate(node.input) if name in self.constants}
        layer = recurrent.make(node, given, constants)
        started = not all(self._zero(name) for name in node.input[5:] if name)
        arguments = [self._argument(node, place, name) for place, name in enumerate(node.input)]
        for step in recurrent.around(node, given, arguments, self._place(node, layer), started=started):
            self._step(step, step.layer or where(node))

    def _zero(self, name: str) -> bool:
        return name in self.zeros or (name in self.constants and not self.constants[name].any())

    def _is_zero(self, node: onnx.NodeProto, given: dict[str, Any]) -> bool:
        if node.op_type == "ConstantOfShape":
            return "value" not in given or not given["value"].any()
        if node.op_type == "Concat":
            return all(self._zero(name) for name in node.input)
        return node.op_type in _ZERO and self._zero(node.input[0])

    def _step(self, step: Step, where: str) -> None:
        for values in self.runs:
            try:
                results = run(self.tape, step, [self.tape.value(argument, values) for argument in step.inputs])
            except Unliftable:
                raise
            except Exception as error:
                raise Unliftable(cause(error)) from error
            values.update({name: value for name, value in zip(step.outputs, results, strict=False) if name})
        self.flat.steps.append(step)
        self.flat.scopes.append(where)
        for name in step.outputs:
            self._note(name)

    def _note(self, name: str) -> None:
        seen = [values.get(name) for values in self.runs]
        if all(isinstance(value, Tensor) and value.is_floating_point() for value in seen):
            self.flat.shapes[name] = tuple(tuple(value.shape) for value in seen if value is not None)

    def finish(self) -> Flat:
        for name in self.tape.outputs:
            if name in self.constants:
                raise Unliftable(f"its output {name} is a constant")
        needed, kept = set(self.tape.outputs), []
        for step, path in zip(reversed(self.flat.steps), reversed(self.flat.scopes), strict=True):
            if needed.intersection(step.outputs):
                needed.update(step.reads)
                kept.append((step, path))
        self.flat.steps = [step for step, _ in reversed(kept)]
        self.flat.scopes = [path for _, path in reversed(kept)]
        return self.flat
