"""What the quantizers of onnxruntime.quantization share: preparation, calibration rows, the check after."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Layout, Tools
from petra_deploy.worker.model import graph
from petra_deploy.worker.model.quiet import cause, quiet

LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
WEIGHTED = (  # the same, and as modules
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "MultiheadAttention",
    "Conv", "ConvTranspose", "Gemm", "MatMul",
)  # fmt: skip
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


def products(graph: ir.Graph) -> list[str]:
    """Names of the MatMul nodes of two activations, as in attention."""
    return [
        node.name or ""
        for node in graph
        if node.op_type == "MatMul" and all(value is None or value.const_value is None for value in node.inputs)
    ]


def finished(
    quantize: Callable[[Path], None], tools: Tools, hint: str, *, by: str = "onnxruntime.quantization", to: str = "int8"
) -> tuple[Path, dict[str, int]]:
    """Let `quantize` write a file, tidy it, and count its operators with quantized inputs.

    Raises Problem("unsupported") where it fails or nothing was quantized.
    """
    path = tools.scratch / "model.onnx"
    with quiet():
        try:
            quantize(path)
        except Problem:
            raise
        except Exception as error:
            raise Problem("unsupported", f"{by} fails on this graph: {cause(error)}") from error
    model = ir.load(path)
    graph.tidy(model, lower=False)
    counts = graph.quantized(model)
    if not counts:
        raise Problem("unsupported", f"no operator of the graph became {to}", hint)
    graph.save(model, path)
    return path, counts


def calibration_reader(tools: Tools, rows: int) -> Any:
    """A CalibrationDataReader over batches of calibration rows, one section a batch."""
    from onnxruntime.quantization import CalibrationDataReader

    samples = tools.calibration.first(rows)
    first = tools.signature.inputs[0].shape
    size = first[0] if first and isinstance(first[0], int) else BATCH_ROWS

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
