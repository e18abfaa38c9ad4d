"""Static INT8 by onnxruntime.quantization, on the exported graph: any model that has one.

Q/DQ pairs around every operator ONNX Runtime has an int8 kernel for: activations uint8, weights int8
per channel, from calibration rows. For models that come as graphs, and as the other opinion beside
Intel Neural Compressor. For GPUs activations are int8 and symmetric, biases stay in float, and pairs
stand where TensorRT fuses them: before layers with weights, at the skip of a residual addition, and at one
scale around a Concat (_placement.py).
Sources: onnxruntime's quantize_static; TensorRT's documentation, "Working with Quantized Types".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
from annotated_types import Ge

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.techniques._ort_graphs import LAYERS, WEIGHTED, finished, has_any, prepared, products
from petra_deploy.worker.techniques._ort_static import Method, Static, static
from petra_deploy.worker.techniques._placement import place

PHASE = Phase.QUANTIZE
ORDER = 1
ACTS_ON: ActsOn = "graph"
BETWEEN = [  # what stands between convolutions and has an int8 form
    "Add", "Mul", "Relu", "Clip", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Pad",
]  # fmt: skip
FOR_TENSORRT = ["Add", "MaxPool", "AveragePool", "GlobalAveragePool"]  # beside LAYERS, around convolutions


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    method: Method = "minmax"  # how an activation's range is found
    calibration_rows: Annotated[int, Ge(1)] = 256
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    symmetric: bool = False  # int8 activations around zero, as TensorRT wants them


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if "int8" not in target.precisions:
        return (f"{target.name} has no int8",)
    if not has_any(layout, WEIGHTED):
        return ("the model has no convolution or linear layer",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"method": Knob.choice("minmax", "entropy", "percentile")}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return {"reduce_range": target.saturates, "symmetric": target.device == "cuda"}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a quantized graph, and how many of its operators are int8.

    Raises Problem("unsupported") where the quantizer fails or nothing became int8.
    """
    source = prepared(model, tools)
    types, left = _chosen(source, options.symmetric)
    placed: dict[str, int] = {}

    def quantize(path: Path) -> None:
        static(
            source,
            path,
            tools,
            Static(types=types, excluded=left, **vars(options)),
        )
        if options.symmetric:
            graph = ir.load(path)
            placed.update(place(graph))
            ir.save(graph, path)

    path, counts = finished(quantize, tools, "only convolutions and linear layers become int8 here")
    rows = min(options.calibration_rows, len(tools.calibration))
    return Applied(path, facts={"int8": counts, "calibration_rows": rows, **({"fused": placed} if placed else {})})


def _chosen(path: Path, symmetric: bool) -> tuple[list[str], list[str]]:
    """The operator types to quantize, and the nodes among them to leave in float.

    Around convolutions everything must be int8 for the runtime to fuse it. In a transformer residual
    additions and attention scores stay in float: int8 costs them accuracy and saves little time. For
    TensorRT an addition of a constant, a bias that stands alone, is float as other biases are.
    """
    graph = ir.load(path).graph
    convolutional = any(node.op_type in ("Conv", "ConvTranspose") for node in graph)
    between = FOR_TENSORRT if symmetric else BETWEEN
    left = products(graph)
    if symmetric:
        left += [n.name or "" for n in graph if n.op_type == "Add" and any(v and v.const_value for v in n.inputs)]
    return LAYERS + (between if convolutional else []), left
