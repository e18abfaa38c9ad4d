"""TensorRT 10 and 11: engines for NVIDIA GPUs, built on the device that they serve.

    engine = build(graph, store.path(graph.key) / "model.onnx", target, {"optimization_level": 4}, folder)
    with open(folder, engine.settings) as runner:
        logits, = runner.run({"image": image})

FP16, BF16, INT8 and FP8 come from the graph's casts and Q/DQ pairs. The package on PyPI downloads its
libraries from NVIDIA's own index when it is installed. Everything is in `_trt.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.operators import RanAll
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.plan import Knob
from petra_deploy.core.target import Target
from petra_deploy.worker.backends import _trt, _trt_profile
from petra_deploy.worker.backends._trt_runner import Runner
from petra_deploy.worker.backends._trt_vendor import Contexts, Vendor


def _contexts(trt: Any, engine: Any, cuda_graph: bool, jit: Path) -> Contexts:
    return Contexts(engine.create_execution_context)


VENDOR = Vendor(
    name="tensorrt", title="TensorRT", extra="tensorrt", aim=None, graphs=False, times=True, contexts=_contexts,
    source=" --extra-index-url https://pypi.nvidia.com (its libraries come from NVIDIA's own index, not from PyPI)",
)  # fmt: skip


def obstacles(target: Target) -> tuple[str, ...]:
    return _trt.obstacles(target)


def knobs(target: Target) -> dict[str, Knob]:
    return {"cuda_graph": Knob.choice("on", "off"), "optimization_level": Knob.integer(3, 5)}


def build(graph: Graph, model: Path, target: Target, settings: Mapping[str, object], folder: Path) -> Engine:
    """See `_trt.build`."""
    return _trt.build(VENDOR, graph, model, target, settings, folder)


def open(folder: Path, settings: Mapping[str, object], *, seed: int = 0) -> Runner:
    """See `_trt.open`."""
    return _trt.open(VENDOR, folder, settings, seed=seed)


def profile(
    folder: Path, settings: Mapping[str, object], feeds: Sequence[Mapping[str, NDArray[Any]]], calls: int,
    scratch: Path, *, seed: int = 0,
) -> RanAll:  # fmt: skip
    """See `_trt_profile.profile`."""
    return _trt_profile.profile(VENDOR, folder, settings, feeds, calls, seed=seed)


def describe() -> dict[str, str]:
    return _trt.describe(VENDOR)
