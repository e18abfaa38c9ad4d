"""Of which layers of the original model an engine's operators are.

    layers = Layers(onnx.load("model.onnx", load_external_data=False))
    places = layers.attribute(ran)                  # one (layers, how) an operator that ran

An operator is a layer's own where it covers a node that reads the layer's parameters: by the name of the weights,
the module in the node's name (model/scopes.py), or the bias that is added next. Another one goes to the layer
whose output it works on, and a conversion to the layer that it serves.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from petra_deploy.core.operators import How, Ran
from petra_deploy.worker.artifact import scopes

Place = tuple[tuple[str, ...], How]
_WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "QGemm", "MatMul", "MatMulInteger", "MatMulNBits",
    "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM",
    "Gather", "Attention", "QAttention",
})  # fmt: skip
_WEIGHTS = 2  # they have as many dimensions, or more
_INTEGER_TYPES = (2, 3, 21, 22)  # uint8, int8, uint4, int4 of TensorProto
_DERIVED = re.compile(r"^(FusedBack_|InsertedPrecisionFreeCast_)|(_token_\d+|_nchwc|_quant|/[A-Za-z]+/?)$")
_WORD = re.compile(r"[^\s+,\[\]{}()|\x1e]+")


@dataclass
class _Constant:
    """A tensor that follows from initializers alone: their names, the most dimensions, whether one is of integers."""

    roots: tuple[str, ...]
    rank: int
    integers: bool


@dataclass
class _Known:
    own: tuple[str, ...] = ()
    integers: bool = False


@dataclass
class Layers:
    """`names` are those with weights, in the file's order; `quantized` those whose weights it holds as integers."""

    model: Any  # onnx.ModelProto
    names: tuple[str, ...] = field(init=False)
    quantized: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self._constants = _initial(graph)
        self._nodes: dict[str, Any] = {}
        self._makers: dict[str, str] = {}  # tensor -> name of its node
        self._readers: dict[str, list[Any]] = {}
        for index, node in enumerate(graph.node):
            self._note(node, node.name if node.name and node.name not in self._nodes else f"{node.name}#{index}")
        self._known = {name: self._own(node, name) for name, node in self._nodes.items()}
        found: dict[str, bool] = {}
        for known in self._known.values():
            for layer in known.own:
                found[layer] = found.get(layer, False) or known.integers
        self.names = tuple(found)
        self.quantized = tuple(layer for layer, integers in found.items() if integers)

    def attribute(self, ran: Sequence[Ran]) -> list[Place]:
        """The place of each operator, given in order of execution."""
        own = [() if one.converts else self._covered(one.covers) for one in ran]
        makers = {tensor: index for index, one in enumerate(ran) for tensor in one.writes}
        users = _users(ran)
        places: list[tuple[str, ...]] = list(own)
        for index, one in enumerate(ran):  # in order, so that what was made before is known
            if not places[index] and not one.converts and not any(map(self._file_node, one.covers)):
                places[index] = self._replaced(ran, users, index)
            if not places[index]:
                sources = [makers[tensor] for tensor in one.reads if makers.get(tensor, index) < index]
                before = [places[i] for i in (sorted(sources, reverse=True) or range(index - 1, -1, -1)) if places[i]]
                places[index] = before[0] if before else ()
        computes = [bool(layers) for layers in own]  # a layer's own work, or a conversion for it
        for index in range(len(ran) - 1, -1, -1):  # backwards, so that what comes later is known
            later = users[index]
            if ran[index].converts and later:
                served = next((i for i in later if computes[i]), later[0])
                places[index], computes[index] = places[served] or places[index], computes[served]
            elif not places[index]:
                places[index] = next((places[i] for i in (*later, *range(index + 1, len(ran))) if places[i]), ())
        return [(places[i], "converts" if ran[i].converts else "own" if own[i] else "follows") for i in range(len(ran))]

    def _replaced(self, ran: Sequence[Ran], users: Sequence[Sequence[int]], index: int) -> tuple[str, ...]:
        """The layer of what an operator of the runtime's own naming stands for: in the file it is before its users."""
        queue = dict.fromkeys(users[index])
        while queue:
            user = next(iter(queue))
            known = next(filter(None, map(self._file_node, ran[user].covers)), "")
            if known:
                return () if self._known[known].own else self._nearest(known)
            queue = dict.fromkeys([*list(queue)[1:], *(i for i in users[user] if i > user)])
        return ()

    def _nearest(self, name: str) -> tuple[str, ...]:
        """The layers of the first node before this one in the file that has some."""
        queue = [name]
        for node in queue:
            if self._known[node].own:
                return self._known[node].own
            makers = (self._makers.get(tensor, "") for tensor in _reads(self._nodes[node]))
            queue += [maker for maker in makers if maker and maker not in queue]
        return ()

    def _covered(self, covers: Sequence[str]) -> tuple[str, ...]:
        """By nodes; else, of what reads a parameter, by the nearest node before it that has a layer.

        By the parameter's own name last: an exporter gives equal ones, such as biases of zeros, one name.
        """
        if found := dict.fromkeys(layer for name in covers for layer in self._of_node(name)):
            return tuple(found)
        named = dict.fromkeys(layer for name in covers for layer in self._of_parameter(name))
        nodes = filter(None, map(self._file_node, covers))
        return next(filter(None, map(self._nearest, nodes)), tuple(named)) if named else ()

    def _of_node(self, name: str) -> tuple[str, ...]:
        """The layers that own the node, or the maker of the tensor, of this name; it may be several nodes joined."""
        if node := self._file_node(name):
            return self._known[node].own
        joined = (self._known[word].own for word in _WORD.findall(name) if word in self._known)
        return tuple(dict.fromkeys(layer for own in joined for layer in own))

    def _file_node(self, name: str) -> str:
        """The node of the file, or the maker of the tensor, that `name` comes from; empty where there is none."""
        for known in _origins(name):
            if node := known if known in self._known else self._makers.get(known, ""):
                return node
        return ""

    def _of_parameter(self, name: str) -> tuple[str, ...]:
        for known in _origins(name):
            if known in self._constants and (layer := scopes.parameter(known)) in self.names:
                return (layer,)
        return ()

    def _note(self, node: Any, name: str) -> None:
        self._nodes[name] = node
        for tensor in node.output:
            self._makers[tensor] = name
        for tensor in node.input:
            self._readers.setdefault(tensor, []).append(node)
        inputs = [self._constants.get(tensor) for tensor in node.input if tensor]
        if inputs and all(inputs) and not _subgraphs(node):
            known = [one for one in inputs if one is not None]
            made = _Constant(tuple(r for one in known for r in one.roots), max(one.rank for one in known),
                             any(one.integers for one in known))  # fmt: skip
            self._constants |= dict.fromkeys(node.output, made)

    def _own(self, node: Any, name: str) -> _Known:
        if all(tensor in self._constants for tensor in node.output):
            return _Known()  # prepares weights
        read = [self._constants[tensor] for tensor in _reads(node) if tensor in self._constants]
        heavy = [one for one in read if one.rank >= _WEIGHTS]
        by_weights, named = _modules(heavy), _modules(read)
        holds = named and node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        if not holds and not (heavy and node.op_type in _WEIGHTED):
            return _Known()
        module = scopes.node(node.name, {p.key: p.value for p in node.metadata_props})
        own = by_weights or ((module,) if module else named) or (self._bias(node) or name,)
        return _Known(own, any(one.integers for one in heavy))

    def _bias(self, node: Any) -> str:
        """The module whose bias is added to what `node` makes; empty where none is."""
        for _ in range(4):  # past conversions and the scales of integers
            readers = self._readers.get(node.output[0], [])
            if len(readers) != 1:
                return ""
            node = readers[0]
            if layers := _modules([self._constants[tensor] for tensor in node.input if tensor in self._constants]):
                return layers[0] if node.op_type == "Add" else ""
        return ""


def _modules(constants: Sequence[_Constant]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for one in constants for root in one.roots if (layer := scopes.parameter(root))))


def _users(ran: Sequence[Ran]) -> list[list[int]]:
    """Who reads what each operator writes, in order; where the runtime does not tell, the one after it."""
    readers: dict[str, list[int]] = {}
    for index, one in enumerate(ran):
        for tensor in one.reads:
            readers.setdefault(tensor, []).append(index)
    found = []
    for index, one in enumerate(ran):
        known = sorted({i for tensor in one.writes for i in readers.get(tensor, ()) if i > index})
        found.append(known if one.writes else [index + 1] if index + 1 < len(ran) else [])
    return found


def _initial(graph: Any) -> dict[str, _Constant]:
    found = {
        one.name: _Constant((one.name,), len(one.dims), one.data_type in _INTEGER_TYPES) for one in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            rank = len(value.dims) if value is not None else 0
            integers = value is not None and value.data_type in _INTEGER_TYPES
            found[node.output[0]] = _Constant((node.output[0],), rank, integers)
    return found


def _subgraphs(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _reads(node: Any) -> Iterator[str]:
    """The inputs of a node, those of its subgraphs too."""
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)


def _origins(name: str) -> Iterator[str]:
    """`name`, and what it was before a runtime hung something to it."""
    yield name
    while (shorter := _DERIVED.sub("", name)) != name:
        yield shorter
        name = shorter
