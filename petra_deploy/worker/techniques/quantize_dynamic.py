"""Dynamic INT8 by onnxruntime.quantization: int8 weights, activations quantized at each call.

For linear layers, LSTM and embeddings, without calibration: it suits transformers and recurrent
networks whose activations have no fixed range. Convolutions gain nothing and are left alone. `keep_float`
names parts of the model to leave alone too.
Source: onnxruntime's quantize_dynamic.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import precision
from petra_deploy.worker.techniques._ort_graphs import finished, has_any, prepared, within

PHASE = Phase.QUANTIZE
ORDER = 2  # of the quantizers, by what was fastest in most families
ACTS_ON: ActsOn = "graph"
OPERATORS = ["MatMul", "Gemm", "LSTM", "Gather"]  # not Attention: it would become an invalid QAttention
WEIGHTED = ("Linear", "LSTM", "MultiheadAttention", "MatMul", "Gemm")

CONVOLUTIONS = ("Conv", "Conv1d", "Conv2d", "Conv3d")
_FORMS = ("", "_MatMul")  # of a node's name: a Gemm is taken apart first


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    keep_float: tuple[str, ...] = ()  # modules of the model (or nodes of the graph) that stay in float


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if "int8" not in target.precisions:
        return (f"{target.name} has no int8",)
    if target.runtime != "onnxruntime" or target.device != "cpu":
        return ("dynamic int8 operators exist for ONNX Runtime on a CPU only",)
    if not has_any(layout, WEIGHTED):
        return ("the model has no linear or LSTM layer",)
    if has_any(layout, CONVOLUTIONS):
        return ("its convolutions would stay in float; static quantization covers them",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return precision.knob(layout)


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return {"reduce_range": target.saturates}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a quantized graph, and how many of its operators are int8.

    Raises Problem("unsupported") where the quantizer fails or nothing became int8.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = prepared(model, tools)
    named = within(ir.load(source).graph, options.keep_float)

    def quantize(path: Path) -> None:
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=[f"{node}{form}" for nodes in named.values() for node in nodes for form in _FORMS],
            per_channel=True,
            reduce_range=options.reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT, "MatMulConstBOnly": True},
        )

    path, counts = finished(quantize, tools, "GRU and plain RNN layers have no int8 kernel", lower=True)
    facts: dict[str, object] = {"int8": counts}
    if named:
        facts["kept_float"] = {part: len(nodes) for part, nodes in named.items()}
    return Applied(path, facts=facts)
