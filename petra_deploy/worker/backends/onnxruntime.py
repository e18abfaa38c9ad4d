"""ONNX Runtime: an engine is the ONNX file itself plus the settings of its session.

    engine = build(graph, store.path(graph.key) / "model.onnx", target, {"threads": 1}, folder)
    with open(folder, engine.settings) as runner:
        logits, = runner.run({"image": image})

A session is opened as it will be served: one inter-op thread, no spinning (a spinning pool steals
the core of whatever runs beside it). ONNX Runtime's SkipLayerNormalization was seen several times
slower than the nodes it replaces, so whether to fuse it is a knob. Never loads custom operators.
"""

import collections
import functools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
import onnxruntime as ort
from annotated_types import Ge
from numpy.typing import NDArray

from petra_deploy.core import files
from petra_deploy.core.data import Data
from petra_deploy.core.errors import Problem
from petra_deploy.core.operators import RanAll
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.plan import Knob
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature
from petra_deploy.worker.backends import _doors, _ort_trace
from petra_deploy.worker.backends import _ort_bound as bound
from petra_deploy.worker.backends import _ort_device as device
from petra_deploy.worker.measure.calls import timed_us

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_SHORT_US, _TRIED = 50.0, 20  # a call in which 2 us can be seen; calls that tell
_SKIP_LAYER_NORM, _SKIP_LAYER_NORM_NODE = "SkipLayerNormFusion", "SkipLayerNormalization"


@dataclass(frozen=True, kw_only=True)
class Settings(Data):
    threads: Annotated[int, Ge(1)] | None = None  # None: what the target says
    optimization: Literal["all", "extended", "basic", "none"] = "all"
    fusions: Literal["default", "no_skip_layer_norm"] = "default"
    disabled_optimizers: tuple[str, ...] = ()  # ONNX Runtime's own names
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    allow_spinning: bool = False
    arena: bool = True  # keep memory between calls
    provider: Literal["cpu", "cuda", "tensorrt"] | None = None  # None: by the target's device
    cuda_graph: Literal["auto", "on", "off"] = "auto"  # capture a call once a shape, replay it; auto: where it can be
    channels: Literal["auto", "first", "last"] = "auto"  # of convolutions on a GPU; auto: last, where it runs so
    io_binding: Literal["off", "on"] = "off"  # on a processor: a call takes 2 us less, and its arrays stay in memory

    def disabled(self) -> list[str]:
        extra = {_SKIP_LAYER_NORM} if self.fusions == "no_skip_layer_norm" else set()
        return sorted({*self.disabled_optimizers, *extra})


def obstacles(target: Target) -> tuple[str, ...]:
    return ()  # whether this ONNX Runtime has a provider for the device, building tells


def knobs(target: Target) -> dict[str, Knob]:
    fusions = {"fusions": Knob.choice("default", "no_skip_layer_norm")}
    return fusions | ({"io_binding": Knob.choice("off", "on")} if target.device == "cpu" else device.knobs())


def build(graph: Graph, model: Path, target: Target, settings: Mapping[str, object], folder: Path) -> Engine:
    """Put `model.onnx` into `folder`, and show that it opens and runs with these settings.

    The engine's key is empty: who publishes the folder knows it. Raises Problem "unsupported"
    where ONNX Runtime refuses the graph or its outputs cannot be bound, "mismatch" where its doors are not the
    signature's, "extra" where the target is a CUDA device and this ONNX Runtime was built without.
    """
    wanted = files.decode(dict(settings), Settings, "the runtime settings")
    resolved = asdict(wanted) | {"threads": wanted.threads or target.threads}
    resolved["disabled_optimizers"] = wanted.disabled()
    resolved["provider"] = wanted.provider or target.device
    device.require(resolved["provider"])
    if resolved["provider"] == "cpu":
        resolved |= {"cuda_graph": "off", "channels": "first"}
    elif wanted.io_binding == "on":
        raise Problem("unsupported", "io_binding is for processors; on a GPU cuda_graph keeps its buffers")
    unbound = bound.obstacle(graph.signature)
    if wanted.io_binding == "on" and unbound:
        raise Problem("unsupported", f"io_binding: {unbound}", "leave it off")
    shutil.copyfile(model, folder / "model.onnx")
    facts: dict[str, object] = {}
    for name, better, plain in (("channels", "last", "first"), ("cuda_graph", "on", "off")):
        if resolved[name] == "auto":
            why = _refused(folder / "model.onnx", {**resolved, name: better}, graph.signature)
            resolved[name], facts[name] = (plain if why else better), (why or "as wanted")
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        with Session(folder / "model.onnx", resolved, optimized=optimized) as runner:
            _doors.check(graph.signature, runner.inputs, runner.outputs)
            _doors.tried(runner.run, graph.signature, runner.inputs)
            short = resolved["provider"] == "cpu" and not unbound and _is_short(runner, graph.signature)
        operators = _operators(optimized)
        may_saturate = _may_saturate(optimized, operators)
    facts |= {"operators": operators, "may_saturate": may_saturate}
    alternatives = {"io_binding": "on"} if short else {}
    if _SKIP_LAYER_NORM_NODE in operators:  # slower than what it stands for, in some graphs
        alternatives["fusions"] = "no_skip_layer_norm"
    if alternatives:
        facts["alternatives"] = alternatives
    if resolved["provider"] != "cpu":
        facts["nodes"] = device.nodes_by_provider(folder / "model.onnx", _options(wanted, None), resolved,
                                                  _doors.examples(graph.signature, 1))  # fmt: skip
    return Engine(
        key="", graph=graph.key, backend="onnxruntime", signature=graph.signature, settings=resolved,
        versions=describe(), bytes=(folder / "model.onnx").stat().st_size, facts=facts,
    )  # fmt: skip


def open(folder: Path, settings: Mapping[str, object], *, seed: int = 0) -> "Session":
    """Open the engine in `folder`. `seed` moves where its memory lies, which moves its speed."""
    generator = np.random.default_rng(seed)
    padding = [np.ones(int(generator.integers(1, 300_000))) for _ in range(4)]
    return Session(folder / "model.onnx", settings, padding=padding)


def profile(
    folder: Path, settings: Mapping[str, object], feeds: Sequence[Mapping[str, NDArray[Any]]], calls: int,
    scratch: Path, *, seed: int = 0,
) -> RanAll:  # fmt: skip
    """By ONNX Runtime's own profiler. Raises Problem "unsupported" on a GPU, where it times the host and no kernel."""
    if settings.get("provider", "cpu") != "cpu":
        raise Problem(
            "unsupported", "ONNX Runtime's profiler does not time what a GPU does", "use the tensorrt runtime"
        )
    optimized = scratch / "optimized.onnx"
    generator = np.random.default_rng(seed)
    padding = [np.ones(int(generator.integers(1, 300_000))) for _ in range(4)]
    with Session(folder / "model.onnx", settings, optimized=optimized, padding=padding,
                 trace=scratch / "trace") as runner:  # fmt: skip
        times = timed_us(runner.run, feeds, calls)
        trace = runner.traced()
    return _ort_trace.ran(trace, optimized, times)


def describe() -> dict[str, str]:
    return {"onnxruntime": ort.__version__}


class Session:
    """A Runner: outputs come in the graph's order. Closing twice is harmless."""

    def __init__(self, model: Path, settings: Mapping[str, object], *, optimized: Path | None = None,
                 padding: list[NDArray[np.float64]] | None = None, trace: Path | None = None) -> None:  # fmt: skip
        """`optimized` is a file for the graph as it runs, `trace` the beginning of the profiler's files."""
        chosen = Settings(**settings)  # type: ignore[arg-type]
        options = _options(chosen, optimized)
        if trace is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        providers = device.providers(settings)
        try:
            self._session: Any = ort.InferenceSession(
                str(model), options, providers=providers, disabled_optimizers=chosen.disabled()
            )
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise Problem("unsupported", f"ONNX Runtime refuses the model: {_sentence(error)}") from error
        device.check(self._session, settings)
        self._padding = padding
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        self._call = self._way(chosen)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Raises Problem "unsupported" where the engine cannot run on these feeds."""
        try:
            return self._call(feeds)
        except Exception as error:
            raise Problem("unsupported", f"the engine cannot run: {_sentence(error)}") from error

    def _way(self, chosen: Settings) -> Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]:
        """How a call is made."""
        if chosen.cuda_graph == "on":
            return device.Replay(self._session).run
        if chosen.io_binding == "on":
            return bound.Bound(self._session, self.outputs).run
        return functools.partial(self._session.run, list(self.outputs))

    def traced(self) -> Path:
        """The profiler's file of all calls so far, of a session that was opened with `trace`."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._session = self._padding = self._call = None  # type: ignore[assignment]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refused(model: Path, settings: Mapping[str, object], signature: Signature) -> str:
    """Why the model does not run with these settings; empty where it does."""
    try:
        with Session(model, settings) as runner:
            _doors.tried(runner.run, signature, runner.inputs)
    except Problem as problem:
        return problem.reason
    return ""


def _is_short(runner: Session, signature: Signature) -> bool:
    """Whether a call takes so little that the way it is made counts; not known where sizes are left to the data."""
    feeds = {name: values for name, values in _doors.examples(signature, 1).items() if name in runner.inputs}
    if not feeds:
        return False
    start = time.perf_counter()
    runner.run(feeds)
    if time.perf_counter() - start > _TRIED * _SHORT_US / 1e6:  # so that a large model is not called twenty times
        return False
    return statistics.median(timed_us(runner.run, [feeds], _TRIED)) < _SHORT_US


def _options(settings: Settings, optimized: Path | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[settings.optimization])
    parallel = settings.execution_mode == "parallel"
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = 3
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if settings.allow_spinning else "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    return options


def _operators(optimized: Path) -> dict[str, int]:
    """How often each operator occurs in the graph that ONNX Runtime made, subgraphs included."""
    import onnx  # here, so that a process which only serves does not carry it

    counts: collections.Counter[str] = collections.Counter()
    graphs = [onnx.load(str(optimized), load_external_data=False).graph]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    return dict(sorted(counts.items()))


def _may_saturate(optimized: Path, operators: Mapping[str, int]) -> int:
    """How many layers have weights whose 8-bit sums can leave 16 bits, on processors that add so."""
    import onnx

    from petra_deploy.worker.artifact import integers

    if not integers.OPERATORS & set(operators):
        return 0
    return sum(layer.risky for layer in integers.find(onnx.load(str(optimized))))


def _sentence(error: Exception) -> str:
    """ONNX Runtime's message without its code and source lines."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    parts = text.split(" : ", 2)
    return (parts[-1] if len(parts) == 3 else text)[:300] or type(error).__name__
