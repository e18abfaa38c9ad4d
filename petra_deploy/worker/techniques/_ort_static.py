"""Calibrated Q/DQ pairs by onnxruntime's quantize_static, as `quantize_ort` and `quantize_fp8` want them.

static(source, path, tools, Static(types=["Conv", "MatMul"], symmetric=True))
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from petra_deploy.core.extension import Tools
from petra_deploy.worker.techniques._ort_graphs import calibration_reader

Method = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True, kw_only=True)
class Static:
    types: list[str]  # of operators to quantize
    excluded: list[str]  # nodes among them to leave alone
    method: Method = "minmax"
    percentile: float = 99.999  # of the "percentile" method: the range that so much of the values is in
    calibration_rows: int = 256
    per_channel: bool = True  # a scale for each output channel of a weight, or one for all
    reduce_range: bool = False
    symmetric: bool = False  # int8 around zero, pairs at inputs only, biases in float; else uint8 activations


def static(source: Path, path: Path, tools: Tools, wanted: Static) -> None:
    """Write the quantized `source` to `path`. Ranges of activations are found once a scratch folder: other
    calls with the same source, method and rows take them from there.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    quantize_static(
        source,
        path,
        calibration_reader(tools, wanted.calibration_rows),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=wanted.types,
        nodes_to_exclude=wanted.excluded,
        activation_type=QuantType.QInt8 if wanted.symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=wanted.per_channel,
        reduce_range=wanted.reduce_range,
        calibrate_method=methods[wanted.method],
        calibration_cache_path=tools.scratch / f"ranges-{wanted.symmetric}.json",
        extra_options={
            "DefaultTensorType": TensorProto.FLOAT,
            "CalibPercentile": wanted.percentile,
            "CalibStridedMinMax": 1,  # one batch at a time, so that memory is bounded
            "ActivationSymmetric": wanted.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not wanted.symmetric,
            "OpTypesToExcludeOutputQuantization": wanted.types if wanted.symmetric else [],  # pairs at inputs only
        },
    )
