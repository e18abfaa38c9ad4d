"""What the quantizers of onnxruntime.quantization share: preparation, calibration rows, the check after."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Layout, Tools
from petra_deploy.worker.artifact import graph, scopes
from petra_deploy.worker.artifact.settle import settle
from petra_deploy.worker.model import parity, precision
from petra_deploy.worker.quiet import cause, quiet

LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
WEIGHTED = (  # the same, and as modules
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "MultiheadAttention",
    "Conv", "ConvTranspose", "Gemm", "MatMul",
)  # fmt: skip
_JUDGED = 2  # batches by which a quantized graph is compared with the float one
BATCH_ROWS = 16  # rows a calibration batch; all activations of one batch are held at once


def prepared(model: Path, tools: Tools) -> Path:
    """The graph with its shapes inferred and basic fusions done, as the quantizers expect it.

    Symbolic shape inference knows fewer operators than the runtime; where it fails it is left out.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = tools.scratch / "prepared.onnx"
    with quiet():
        try:
            quant_pre_process(model, path)
        except Exception as error:
            tools.log(f"symbolic shape inference left out: {cause(error)}")
            quant_pre_process(model, path, skip_symbolic_shape=True)
    return path


def within(graph: ir.Graph, parts: Sequence[str]) -> dict[str, list[str]]:
    """The names of the nodes that are of each part of the model; a node's own name is a part too."""
    found: dict[str, list[str]] = {part: [] for part in parts}
    for node in graph:
        for name in (node.name or "", *_modules(node)):
            if name and (part := precision.within(name, parts)):
                found[part].append(node.name or "")
                break
    return found


def blocks(graph: ir.Graph, types: Sequence[str], most: int = 16) -> list[str]:
    """The parts of the model that hold nodes of these types, in order; coarser names where there are more than `most`.

    A node that no module is known of is a part by itself.
    """
    nodes = [node for node in graph if node.op_type in types and any(v and v.is_initializer() for v in node.inputs)]
    names = [next((name for name in _modules(node) if name), node.name or "") for node in nodes]
    deepest = max((name.count(".") for name in names), default=0)
    for depth in range(deepest + 1, 0, -1):
        found = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names if name))
        if len(found) <= most:
            break
    return found if names else []


def _modules(node: ir.Node) -> list[str]:
    """The modules that a node may be of: that whose parameters it reads, and that whose forward made it."""
    read = [scopes.parameter(value.name or "") for value in node.inputs if value and value.is_initializer()]
    return [*read, scopes.node(node.name or "")]


def products(graph: ir.Graph) -> list[str]:
    """Names of the MatMul nodes of two activations, as in attention."""
    return [
        node.name or ""
        for node in graph
        if node.op_type == "MatMul" and all(value is None or value.const_value is None for value in node.inputs)
    ]


def finished(
    quantize: Callable[[Path], None], tools: Tools, hint: str, *, by: str = "onnxruntime.quantization",
    to: str = "int8", lower: bool = False, name: str = "model",
) -> tuple[Path, dict[str, int]]:  # fmt: skip
    """Let `quantize` write a file, tidy it, and count its operators with quantized inputs.

    `lower`: for ONNX Runtime on a processor, to its own operators, and no weight unpacked at each call.

    Raises Problem("unsupported") where it fails or nothing was quantized.
    """
    path = tools.scratch / f"{name}.onnx"
    with quiet():
        try:
            quantize(path)
        except Problem:
            raise
        except Exception as error:
            raise Problem("unsupported", f"{by} fails on this graph: {cause(error)}") from error
    model = ir.load(path)
    graph.tidy(model, lower=lower)
    graph.save(model, path)
    if lower and (wide := settle(path)):
        tools.log(f"float again, since ONNX Runtime has no integer kernel for them: {', '.join(wide)}")
        model = ir.load(path)
    counts = graph.quantized(model)
    if not counts:
        raise Problem("unsupported", f"no operator of the graph became {to}", hint)
    return path, counts


def judged(tools: Tools) -> Callable[[Path, Path], float]:
    """What gives the SQNR in dB of a file's answers against another's, on calibration rows."""
    size = tools.signature.fixed_batch or BATCH_ROWS
    batches = parity.probes(tools.calibration, tools.signature, [size] * _JUDGED)
    answers: dict[Path, list[Any]] = {}

    def of(path: Path) -> list[Any]:
        return [np.concatenate(parts) for parts in zip(*parity.run_file(path, batches), strict=True)]

    def judge(source: Path, path: Path) -> float:
        if source not in answers:
            answers[source] = of(source)
        return precision.sqnr_db(answers[source], of(path))

    return judge


def calibration_reader(tools: Tools, rows: int) -> Any:
    """A CalibrationDataReader over batches of calibration rows, one section a batch."""
    from onnxruntime.quantization import CalibrationDataReader

    samples = tools.calibration.first(rows)
    size = tools.signature.fixed_batch or BATCH_ROWS

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._next: Iterator[dict[str, Any]] = iter(())

        def __len__(self) -> int:
            return max(len(samples) // size if not tools.signature.dynamic_batch else -(-len(samples) // size), 1)

        def set_range(self, start_index: int, end_index: int) -> None:
            part = samples.take(slice(start_index * size, end_index * size))
            self._next = (feeds for feeds, _ in part.batches(size))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._next, None)

    return Reader()


def mostly_recurrent(layout: Layout) -> tuple[str, ...]:
    """The obstacle that recurrent layers are, where none but linear ones stand beside them."""
    others = ("Conv1d", "Conv2d", "Conv3d", "MultiheadAttention", "Conv")
    if not has_any(layout, ("LSTM", "GRU", "RNN")) or has_any(layout, others):
        return ()
    return ("TensorRT keeps recurrent layers in float, and the linear ones beside them take little time",)


def has_any(layout: Layout, names: tuple[str, ...]) -> bool:
    """Whether the model has one of these operators (module classes or ONNX operators)."""
    return any(layout.operators.get(name) for name in names)
