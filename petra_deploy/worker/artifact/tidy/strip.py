"""Leave out what no one reads: dead nodes, unused weights, metadata, names of files.

The exporter writes stack traces with paths of this machine into every node; none may ship. Of all that only
the module that a node is a part of stays, in its name: "layer1.0.conv1/Conv_12" (worker/artifact/scopes.py).
"""

import onnx_ir as ir
from onnx_ir.passes import common

from petra_deploy.worker.artifact import scopes
from petra_deploy.worker.artifact.tidy.bench import Bench


def rewrite(bench: Bench) -> int:
    graph = bench.graph
    changes = 0
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            changes += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
            changes += 1
    _strip(bench.model)
    common.RemoveUnusedOpsetsPass()(bench.model)
    return changes


def _strip(model: ir.Model) -> None:
    for index, node in enumerate(model.graph.all_nodes()):
        scope = scopes.node(node.name or "", node.metadata_props)
        node.name = f"{scope}/{node.op_type}_{index}" if scope else f"{node.op_type}_{index}"
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if not value.is_graph_output():
                value.shape = value.type = None
