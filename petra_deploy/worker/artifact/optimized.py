"""The graph that ONNX Runtime makes of a file before it runs it on a processor.

    model = optimized(Path("model.onnx"), engine.settings)      # QLinearConv, FusedConv, Gelu ... for their parts

What a call costs follows from the operators that are really run. All fusions but the last step,
which lays tensors out for the processor at hand (NCHWc): it renames operators and does not change
what they have to do.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import onnx

from petra_deploy.core.errors import Problem
from petra_deploy.worker.quiet import cause

_LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC"}


def optimized(path: Path, settings: Mapping[str, object] | None = None) -> onnx.ModelProto:
    """Under an engine's `settings`. Raises Problem("mismatch") where ONNX Runtime refuses the file."""
    import onnxruntime

    settings = settings or {}
    level = _LEVELS.get(str(settings.get("optimization")), "ORT_ENABLE_EXTENDED")
    disabled = list(cast(Sequence[str], settings.get("disabled_optimizers", ())))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(made)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        try:
            onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise Problem("mismatch", f"ONNX Runtime does not open the file: {cause(error)}") from error
        return onnx.load(str(made))
