"""ONNX Runtime's providers for a CUDA device: which are here, that they took the graph, replayed calls.

    providers({"provider": "cuda"})         # what InferenceSession is given
    check(session, settings)                # raises where ONNX Runtime went on without the provider
    Replay(session).run(feeds)              # a CUDA graph, captured once a shape

Sources: ONNX Runtime documentation, "CUDA Execution Provider" and "TensorRT Execution Provider".
"""

import collections
import ctypes
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.plan import Knob

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_NVINFER = "libnvinfer.so.10"  # that ONNX Runtime's TensorRT provider is linked to
_WHOLE = -1  # the id of a call that is not captured
_INSTALL = (
    "pip uninstall onnxruntime, then pip install onnxruntime-gpu[cuda,cudnn]: both install the same folder, "
    "so only one can be there"
)


def require(provider: str) -> None:
    """Raises Problem "extra" where this build of ONNX Runtime lacks the provider."""
    if NAMES[provider] not in ort.get_available_providers():
        raise Problem("extra", f"this ONNX Runtime has no {NAMES[provider]}", _INSTALL)


def knobs() -> dict[str, Knob]:
    """What may be chosen on a GPU, the likely better first; TensorRT's provider only where its library loads."""
    found = {"cuda_graph": Knob.choice("auto", "off"), "channels": Knob.choice("auto", "first")}
    if NAMES["tensorrt"] in ort.get_available_providers() and _loads(_NVINFER):
        found["provider"] = Knob.choice("cuda", "tensorrt")
    return found


def providers(settings: Mapping[str, object]) -> list[Any]:
    """(name, options) in order of preference. The processor is last: it takes what no other has a kernel for."""
    provider = str(settings.get("provider") or "cpu")
    if provider == "cpu":
        return [NAMES["cpu"]]
    require(provider)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # of CUDA's own Python packages, where they are installed
    cuda = {
        "enable_cuda_graph": "1" if settings.get("cuda_graph") == "on" else "0",
        "prefer_nhwc": "1" if settings.get("channels") == "last" else "0",
    }
    tensorrt = {
        "trt_fp16_enable": "1",  # what the graph itself asks for, in casts and pairs
        "trt_int8_enable": "1",
        "trt_cuda_graph_enable": cuda["enable_cuda_graph"],
        "trt_timing_cache_enable": "1",
    }
    chosen = [(NAMES["tensorrt"], tensorrt)] if provider == "tensorrt" else []
    return [*chosen, (NAMES["cuda"], cuda), NAMES["cpu"]]


def check(session: Any, settings: Mapping[str, object]) -> None:
    """Raises Problem "unsupported" where the session does without the provider that was asked for."""
    wanted = NAMES[str(settings.get("provider") or "cpu")]
    if wanted not in session.get_providers():
        raise Problem(
            "unsupported",
            f"ONNX Runtime went on without {wanted}: its libraries or the driver do not fit",
            "`python -c 'import onnxruntime; onnxruntime.print_debug_info()'` names the library that is missing",
        )


def nodes_by_provider(
    model: Path, options: Any, settings: Mapping[str, object], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, int]:
    """How many nodes each provider ran in one call; those on the processor cost copies. Empty without feeds."""
    if not feeds:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = ort.InferenceSession(str(model), options, providers=providers({**settings, "cuda_graph": "off"}))
        session.run(None, {spec.name: feeds[spec.name] for spec in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    short = {name: key for key, name in NAMES.items()}
    ran = {
        (event["args"]["node_index"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and "node_index" in event.get("args", {}) and event["args"].get("provider")
    }
    return dict(sorted(collections.Counter(short.get(provider, provider) for _, provider in ran).items()))


class Replay:
    """Runs a session with buffers that stay where they are, one set a shape, as a CUDA graph demands."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._sets: dict[tuple[tuple[int, ...], ...], tuple[Any, Any, dict[str, Any], list[Any]]] = {}
        self._names = [spec.name for spec in session.get_inputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        key = tuple(feeds[name].shape for name in self._names)
        if key not in self._sets:
            self._sets[key] = self._bind(feeds, number=len(self._sets) + 1)
        binding, options, inputs, outputs = self._sets[key]
        for name, buffer in inputs.items():
            buffer.update_inplace(np.ascontiguousarray(feeds[name]))
        self._session.run_with_iobinding(binding, options)
        return [buffer.numpy() for buffer in outputs]

    def _bind(self, feeds: Mapping[str, NDArray[Any]], *, number: int) -> tuple[Any, Any, dict[str, Any], list[Any]]:
        """Buffers on the device for these shapes; those of the outputs are learnt from one ordinary call."""
        results = self._session.run(None, {name: feeds[name] for name in self._names}, _run_options(_WHOLE))
        binding = self._session.io_binding()
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(feeds[name], "cuda", 0) for name in self._names}
        outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(result.shape, result.dtype, "cuda", 0) for result in results
        ]
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer)
        for spec, buffer in zip(self._session.get_outputs(), outputs, strict=True):
            binding.bind_ortvalue_output(spec.name, buffer)
        return binding, _run_options(number), inputs, outputs


def _run_options(graph_id: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
