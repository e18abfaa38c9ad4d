"""Static INT8 or FP8 by NVIDIA ModelOpt, where it is installed: NVIDIA's own opinion on what TensorRT runs fast.

    pip install "petra-deploy[modelopt]"

It leaves out what its authors found slow in TensorRT (narrow layers, products of a vector and a matrix), follows
attention and residual additions further than `quantize_ort` does, and calibrates on ONNX Runtime's processor
kernels. What it leaves in FP32 is cast by `half`. Source: modelopt.onnx.quantization.quantize of 0.47.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from petra_deploy.core import machine
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.techniques._ort_graphs import BATCH_ROWS, WEIGHTED, finished, has_any, mostly_recurrent

PHASE = Phase.QUANTIZE
ORDER = 4
ACTS_ON: ActsOn = "graph"
_PACKAGES = ("nvidia-modelopt", "onnx-graphsurgeon", "onnxslim", "lief")
_EXTRA = 'pip install "petra-deploy[modelopt]"'


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    mode: Literal["int8", "fp8"] = "int8"
    method: Literal["max", "entropy"] = "max"  # how an activation's range is found
    calibration_rows: Annotated[int, Ge(1)] = 256


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.device != "cuda" or "int8" not in target.precisions:
        return ("it quantizes for TensorRT",)
    if _missing():
        return (f"NVIDIA ModelOpt is not installed ({_EXTRA})",)
    if not has_any(layout, WEIGHTED):
        return ("the model has no convolution or linear layer",)
    return mostly_recurrent(layout)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    modes = {"mode": Knob.choice("int8", "fp8")} if "fp8" in target.precisions else {}
    return {**modes, "method": Knob.choice("max", "entropy")}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a quantized graph, and how many of its operators are int8 or FP8.

    Raises Problem "extra" without ModelOpt, "unsupported" where it fails or leaves all in float.
    """
    if missing := _missing():
        raise Problem("extra", f"NVIDIA ModelOpt is not installed: {', '.join(missing)}", _EXTRA)
    source = tools.scratch / "source.onnx"  # it writes beside what it reads
    shutil.copyfile(model, source)
    rows = tools.calibration.first(options.calibration_rows)
    size = tools.signature.fixed_batch or BATCH_ROWS  # of one row, every product would be one with a vector
    wanted = [spec.name for spec in tools.signature.inputs]
    batches = [
        {name: np.resize(feeds[name], (size, *feeds[name].shape[1:])) for name in wanted}
        for feeds, _ in rows.batches(size)
    ]

    def quantize(path: Path) -> None:
        from modelopt.onnx.quantization import quantize

        shutil.copyfile(source, path)  # what it leaves as it is, it does not write
        quantize(
            onnx_path=str(source),
            quantize_mode=options.mode,
            calibration_data_reader=_reader(batches),
            calibration_method=options.method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(path),
            log_level="ERROR",
        )

    hint = "ModelOpt leaves layers in float that are narrow"
    path, counts = finished(quantize, tools, hint, by="NVIDIA ModelOpt", to=options.mode)
    return Applied(path, facts={options.mode: counts, "calibration_rows": len(rows)})


def _reader(batches: Sequence[Mapping[str, NDArray[Any]]]) -> Any:
    """A CalibrationDataReader that can also look at its first batch, and start again."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._next = iter(batches)

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(self._next, None)

        def get_first(self) -> Mapping[str, NDArray[Any]]:
            return batches[0]

    return Reader()


def _missing() -> list[str]:
    found = machine.versions(_PACKAGES)
    return [name for name in _PACKAGES if name not in found]
