"""Short names in a finished graph: in a network of a hundred kilobytes, long ones are a fifth of the file.

    shorten(model)              # an onnx.ModelProto, in place; what it computes stays

Inputs, outputs, parameters and nodes that tell their module ("layer1.0.conv1/Conv_12", see scopes.py) keep their
names; what exporters and quantizers called theirs ("dequantize_per_channel_3") gets a number. Types and shapes of
what lies between go, too: every runtime infers them.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from petra_deploy.worker.artifact import scopes


def shorten(model: Any) -> None:
    """Subgraphs included, local functions left alone: their names are their own."""
    graphs = list(_graphs(model.graph))
    kept = {door.name for door in (*model.graph.input, *model.graph.output)}
    kept |= {sparse.values.name for graph in graphs for sparse in graph.sparse_initializer}
    kept |= {tensor.name for graph in graphs for tensor in graph.initializer if scopes.parameter(tensor.name)}
    fresh = _Fresh(kept)
    for graph in graphs:
        for tensor in graph.initializer:
            tensor.name = fresh.of(tensor.name)
        for door in (*graph.input, *graph.output):
            door.name = fresh.of(door.name)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = fresh.of(annotation.tensor_name)
            for entry in annotation.quant_parameter_tensor_names:
                entry.value = fresh.of(entry.value)
        for node in graph.node:
            node.input[:] = [fresh.of(name) for name in node.input]
            node.output[:] = [fresh.of(name) for name in node.output]
        del graph.value_info[:]
    nodes = [node for graph in graphs for node in graph.node]
    for number, node in enumerate(nodes):
        if not scopes.node(node.name):
            node.name = f"n{number}"


class _Fresh:
    """One short name for each old one; names of subgraphs see those around them, so one table serves all."""

    def __init__(self, kept: set[str]) -> None:
        self._table = {"": "", **{name: name for name in kept}}
        self._numbered = (name for name in map("t{}".format, itertools.count()) if name not in kept)

    def of(self, name: str) -> str:
        if name not in self._table:
            self._table[name] = next(self._numbered)
        return self._table[name]


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)
