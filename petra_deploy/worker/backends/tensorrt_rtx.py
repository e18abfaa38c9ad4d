"""TensorRT-RTX: engines for RTX-class GPUs, compiled ahead of time with or without one, finished when opened.

    engine = build(graph, model, machine.resolve("rtx-4090"), {}, folder)      # no GPU is needed
    compile_check(model, "8.9")         # () or a sentence for each node that is refused

A plan holds for a compute capability; the kernels themselves are compiled when it is opened, and kept in the
user's cache. CUDA graphs are the runtime's own affair. For a T4 (7.5) this is a check of the parser and the
compiler only: FP32 matrix products are refused there, and known to be wrong where they are not (TensorRT-RTX's
issues, pytorch/TensorRT 4643 to 4646). What it accepts TensorRT may still refuse.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.operators import RanAll
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.plan import Knob
from petra_deploy.core.target import Target
from petra_deploy.worker.backends import _trt, _trt_cache, _trt_profile
from petra_deploy.worker.backends._trt_build import Range, Refused, Settings, compile
from petra_deploy.worker.backends._trt_runner import Runner
from petra_deploy.worker.backends._trt_vendor import Contexts, Vendor

_TURING = "7.5"
_SERVED = ("8.0", "8.6", "8.9", "12.0", "12.1")  # of its support matrix


def _contexts(trt: Any, engine: Any, cuda_graph: bool, jit: Path) -> Contexts:
    """Contexts that capture their own CUDA graphs, and share the kernels compiled here before."""
    config = engine.create_runtime_config()
    strategy = trt.CudaGraphStrategy
    config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if cuda_graph else strategy.DISABLED
    if not hasattr(config, "create_runtime_cache"):  # before 1.2
        return Contexts(lambda: engine.create_execution_context(runtime_config=config))
    kernels = config.create_runtime_cache()
    if known := _trt_cache.read(jit):
        kernels.deserialize(known)  # one of another driver is refused, and everything compiled again
    config.set_runtime_cache(kernels)
    return Contexts(
        make=lambda: engine.create_execution_context(runtime_config=config),
        close=lambda: _trt_cache.update(jit, lambda _: bytes(kernels.serialize())),
    )


def _aim(trt: Any, config: Any, capability: str) -> None:
    """Compile for this compute capability; one that is not listed is tried where its device is here."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(_known(trt).get(capability, trt.ComputeCapability.CURRENT), 0)


def _known(trt: Any) -> dict[str, Any]:
    """ "8.9" -> SM89, for all that the package compiles for."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}


VENDOR = Vendor(
    name="tensorrt_rtx", title="TensorRT-RTX", extra="tensorrt-rtx", source=" (for Linux and Windows on x86-64)",
    aim=_aim, contexts=_contexts, graphs=True, times=False,
)  # fmt: skip


def obstacles(target: Target) -> tuple[str, ...]:
    if target.compute_capability == _TURING:
        return ("TensorRT-RTX computes wrong results on Turing (compute capability 7.5)",)
    if target.compute_capability not in (None, *_SERVED):
        return (f"TensorRT-RTX serves compute capabilities {', '.join(_SERVED)}, not {target.compute_capability}",)
    return _trt.obstacles(target)


def knobs(target: Target) -> dict[str, Knob]:
    return {"cuda_graph": Knob.choice("on", "off")}


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


def compile_check(model: Path, capability: str, sizes: Mapping[str, Range] | None = None) -> tuple[str, ...]:
    """A sentence for each node that TensorRT-RTX refuses for this compute capability, like "8.6"; none if it compiles.

    `sizes` are the ranges of dynamic dimensions other than the batch. Raises Problem "unsupported" for a
    capability that it does not know (Hopper, data-centre Blackwell) or a dimension without a range, "extra"
    where the package is not here. Needs no GPU. Accepting proves nothing of TensorRT itself.
    """
    trt, _ = VENDOR.load()
    if capability not in (known := _known(trt)):
        raise Problem(
            "unsupported",
            f"TensorRT-RTX cannot compile for compute capability {capability}: it knows {', '.join(known)}",
        )
    try:
        compile(VENDOR, model, Settings(sizes=dict(sizes or {})), capability=capability)
    except Refused as refused:
        return refused.sentences
    return ()
