"""Run an ONNX graph in pieces: some of its nodes computed here, all that is between them by ONNX Runtime.

    pieces = Pieces(model, apart=("conv_3",))
    outputs = pieces.run(feeds, {"conv_3": lambda values: ...})     # values: name -> array, of its inputs

The graph is one that ONNX Runtime has optimized; between the nodes set apart it runs as it is.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from petra_deploy.core.errors import Problem

Array = NDArray[Any]
Compute = Callable[[dict[str, Array]], Array]
_ELEMENT = {"float": "FLOAT", "double": "DOUBLE", "float16": "FLOAT16", "bool": "BOOL", "string": "STRING"}


class Pieces:
    """`apart` names nodes of the main graph by their first output; each has one output."""

    def __init__(self, model: onnx.ModelProto, apart: Collection[str], threads: int = 1) -> None:
        self._model, self._threads = model, threads
        self.outputs = tuple(value.name for value in model.graph.output)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        parts = _split(model.graph, frozenset(apart))
        made = {name for part in parts for node in part for name in node.output if name}
        given = {value.name for value in model.graph.input} - set(self._constants)
        uses = [_used(part) & (made | given) for part in parts]
        crossing = {name for part, use in zip(parts, uses, strict=True) for name in use - _made(part)} - given
        kinds = self._kinds(sorted(crossing | set(self.outputs)))
        self._steps: list[tuple[onnx.NodeProto | ort.InferenceSession, list[str], list[str]]] = []
        for index, (part, use) in enumerate(zip(parts, uses, strict=True)):
            later = set().union(*uses[index + 1 :], self.outputs)
            inputs, outputs = sorted(use - _made(part)), [n for n in _made(part) if n in later]
            if part[0].output[0] in apart:
                self._steps.append((part[0], inputs, outputs))
            elif outputs:
                self._steps.append((self._session(part, inputs, outputs, kinds), inputs, outputs))

    def run(self, feeds: Mapping[str, Array], computed: Mapping[str, Compute]) -> list[Array]:
        """The graph's outputs in its order; `computed` has a function for each node set apart."""
        values: dict[str, Array] = dict(feeds)
        for step, inputs, outputs in self._steps:
            taken = {name: values[name] for name in inputs}
            if isinstance(step, onnx.NodeProto):
                values[step.output[0]] = computed[step.output[0]](taken)
            else:
                values.update(zip(outputs, step.run(outputs, taken), strict=True))
        return [values[name] for name in self.outputs]

    def _session(self, part: list[onnx.NodeProto], inputs: list[str], outputs: list[str],
                 kinds: Mapping[str, int]) -> ort.InferenceSession:  # fmt: skip
        constants = [self._constants[name] for name in sorted(_used(part)) if name in self._constants]
        known = {value.name: value for value in self._model.graph.input}
        doors = [known[n] if n in known else helper.make_tensor_value_info(n, kinds[n], None) for n in inputs]
        ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
        return self._open(helper.make_graph(part, "part", doors, ends, constants))

    def _kinds(self, names: list[str]) -> dict[str, int]:
        """The element types of values inside the graph, as ONNX Runtime infers them."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self._model.graph)
        del graph.output[:]
        graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        found = {}
        for value in self._open(graph).get_outputs():
            element = value.type.removeprefix("tensor(").removesuffix(")")
            found[value.name] = getattr(onnx.TensorProto, _ELEMENT.get(element, element.upper()))
        return found

    def _open(self, graph: onnx.GraphProto) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors, and protobuf's above 2 GiB, share no base
            raise Problem("unsupported", f"the graph cannot be run in pieces: {error}") from error


def expand(model: onnx.ModelProto) -> None:
    """Write DynamicQuantizeMatMul, in place, as the two operators that it is: quantize, then multiply."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "DynamicQuantizeMatMul":
            nodes.append(node)
            continue
        a, b, scale, zero, bias = (list(node.input) + [""] * 5)[:5]
        quantized = [f"{node.output[0]}_{part}" for part in ("quantized", "scale", "zero")]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [a], quantized))
        values, own_scale, own_zero = quantized
        nodes.append(
            helper.make_node(
                "MatMulIntegerToFloat", [values, b, own_scale, scale, own_zero, zero, bias], [node.output[0]],
                name=node.name, domain="com.microsoft",
            )
        )  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _split(graph: onnx.GraphProto, apart: frozenset[str]) -> list[list[onnx.NodeProto]]:
    """The nodes in order, as runs of neighbours; each node of `apart` is a run of its own."""
    parts: list[list[onnx.NodeProto]] = []
    joined = False
    for node in graph.node:
        alone = node.output[0] in apart
        if joined and not alone:
            parts[-1].append(node)
        else:
            parts.append([node])
        joined = not alone
    return parts


def _made(part: list[onnx.NodeProto]) -> set[str]:
    return {name for node in part for name in node.output if name}


def _used(nodes: Any) -> set[str]:
    """Names that nodes take, in subgraphs too (whose own names may be among them)."""
    found: set[str] = set()
    for node in nodes:
        found |= {name for name in node.input if name}
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                found |= _used(graph.node) | {value.name for value in graph.output}
    return found
