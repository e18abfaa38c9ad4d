"""Static INT8 by onnxruntime.quantization, on the exported graph: any model that has one.

Q/DQ pairs around every operator ONNX Runtime has an int8 kernel for: activations uint8, weights int8
per channel, from calibration rows. For models that come as graphs, and as the other opinion beside
Intel Neural Compressor. For GPUs activations are int8 and symmetric, biases stay in float, and pairs
stand before layers with weights and at both arms of a residual addition, where TensorRT fuses them.
Sources: onnxruntime's quantize_static; TensorRT's documentation, "Working with Quantized Types".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import onnx_ir as ir
from annotated_types import Ge

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.techniques._ort_graphs import calibration_reader, finished, has_any, prepared

PHASE = Phase.QUANTIZE
ORDER = 1
ACTS_ON: ActsOn = "graph"
LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
BETWEEN = [  # what stands between convolutions and has an int8 form
    "Add", "Mul", "Relu", "Clip", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Pad",
]  # fmt: skip
FOR_TENSORRT = ["Add", "MaxPool", "AveragePool", "GlobalAveragePool"]  # beside LAYERS, around convolutions
WEIGHTED = (
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "MultiheadAttention",
    "Conv", "ConvTranspose", "Gemm", "MatMul",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    method: Literal["minmax", "entropy", "percentile"] = "minmax"  # how an activation's range is found
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
    from onnx import TensorProto
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    source = prepared(model, tools)
    types, products = _chosen(source, options.symmetric)

    def quantize(path: Path) -> None:
        quantize_static(
            source,
            path,
            calibration_reader(tools, options.calibration_rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=types,
            nodes_to_exclude=products,
            activation_type=QuantType.QInt8 if options.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=options.reduce_range,
            calibrate_method=methods[options.method],
            extra_options={
                "DefaultTensorType": TensorProto.FLOAT,
                "CalibStridedMinMax": 1,  # one batch at a time, so that memory is bounded
                "ActivationSymmetric": options.symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not options.symmetric,
                "OpTypesToExcludeOutputQuantization": types if options.symmetric else [],  # pairs at inputs only
            },
        )

    path, counts = finished(quantize, tools, "only convolutions and linear layers become int8 here")
    rows = min(options.calibration_rows, len(tools.calibration))
    return Applied(path, facts={"int8": counts, "calibration_rows": rows})


def _chosen(path: Path, symmetric: bool) -> tuple[list[str], list[str]]:
    """The operator types to quantize, and the nodes among them to leave in float.

    Around convolutions everything must be int8 for the runtime to fuse it. In a transformer residual
    additions and attention scores stay in float: int8 costs them accuracy and saves little time.
    """
    graph = ir.load(path).graph
    convolutional = any(node.op_type in ("Conv", "ConvTranspose") for node in graph)
    products = [
        node.name or ""
        for node in graph
        if node.op_type == "MatMul" and all(value is None or value.const_value is None for value in node.inputs)
    ]
    between = FOR_TENSORRT if symmetric else BETWEEN
    return LAYERS + (between if convolutional else []), products
