"""OpenVINO on the processor: an engine is the ONNX file itself, which OpenVINO reads and compiles when it opens.

    engine = build(graph, store.path(graph.key) / "model.onnx", target, {"threads": 1}, folder)
    with open(folder, engine.settings) as runner:
        logits, = runner.run({"image": image})

One stream of so many threads; float is computed in FP32 (OpenVINO takes bf16 by itself where a processor
has it), and where the process runs is left to who started it. Needs the extra `openvino`. Source:
OpenVINO documentation, "CPU Device" and "Precision Control".

`import openvino` sends a message to Intel through openvino-telemetry, without asking, and writes into the
home folder (openvino/tools/ovc/__init__.py, 2026.4). That package is hidden while we import: nothing is sent.
"""

import collections
import functools
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from petra_deploy.core import files
from petra_deploy.core.data import Data
from petra_deploy.core.errors import Problem
from petra_deploy.core.operators import Ran, RanAll
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.plan import Knob
from petra_deploy.core.target import Target
from petra_deploy.worker.backends import _doors
from petra_deploy.worker.measure.calls import WARM, timed_us

_TELEMETRY = "openvino_telemetry"
_NOT_RUN = ("Const", "Input", "Output")  # of the compiled graph
_CONVERSIONS = ("Reorder", "FakeQuantize", "Convert")  # compiled from QuantizeLinear, DequantizeLinear, Cast too
_PRECISIONS = {
    "f32": "fp32", "f16": "fp16", "f64": "fp64", "bf16": "bf16", "u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4",
}  # fmt: skip
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Settings(Data):
    threads: Annotated[int, Ge(1)] | None = None  # None: what the target says
    precision: Literal["f32", "bf16"] = "f32"  # of what is float in the graph

    def properties(self) -> dict[str, object]:
        """In OpenVINO's own words."""
        return {
            "INFERENCE_NUM_THREADS": self.threads or 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
            "ENABLE_CPU_PINNING": False,
        }


def obstacles(target: Target) -> tuple[str, ...]:
    return () if target.device == "cpu" else ("this backend runs on the processor only",)


def knobs(target: Target) -> dict[str, Knob]:
    """bf16 only where the target has tiles for it; elsewhere it is emulated and slower."""
    fast = "bf16" in target.precisions and "amx" in target.instructions
    return {"precision": Knob.choice("f32", "bf16")} if fast else {}


def build(graph: Graph, model: Path, target: Target, settings: Mapping[str, object], folder: Path) -> Engine:
    """Put `model.onnx` into `folder`, and show that it opens and runs with these settings.

    The engine's key is empty: who publishes the folder knows it. Raises Problem "unsupported" where
    OpenVINO refuses the graph or the target has no such precision, "mismatch" where the graph's doors
    are not the signature's, "extra" where OpenVINO is not installed.
    """
    wanted = files.decode(dict(settings), Settings, "the runtime settings")
    if wanted.precision == "bf16" and "bf16" not in target.precisions:
        raise Problem("unsupported", f"{target.name} has no bf16 in OpenVINO", "set precision to f32")
    resolved = asdict(wanted) | {"threads": wanted.threads or target.threads}
    shutil.copyfile(model, folder / "model.onnx")
    with Session(folder / "model.onnx", resolved) as runner:
        wants = [spec.name for spec in graph.signature.outputs]
        _doors.check(graph.signature, runner.inputs, _named(runner.outputs, wants))
        _doors.tried(runner.run, graph.signature, runner.inputs)
        facts = runner.facts()
    return Engine(
        key="", graph=graph.key, backend="openvino", signature=graph.signature, settings=resolved,
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
    """By OpenVINO's own counters, whose means are cut to a microsecond. `scratch` is not needed."""
    generator = np.random.default_rng(seed)
    padding = [np.ones(int(generator.integers(1, 300_000))) for _ in range(4)]
    with Session(folder / "model.onnx", settings, padding=padding, counted=True) as runner:
        for number in range(WARM):
            runner.run(feeds[number % len(feeds)])
        before = runner.ran()
        times = timed_us(runner.run, feeds, calls)
        after = runner.ran()
    every, typical = 2 * WARM + calls, statistics.median(times) / statistics.fmean(times)

    def later(one: Ran) -> Ran:
        """Without the first calls, the counters holding the mean of all; as much below it as the median call is."""
        first = before[one.name].us if one.name in before else 0.0
        return replace(one, us=max(0.0, (one.us * every - first * WARM) / (every - WARM)) * typical)

    return RanAll(operators=tuple(map(later, after.values())), call_us=statistics.median(times))


def describe() -> dict[str, str]:
    """The version, read without importing. Raises Problem "extra" where OpenVINO is not installed."""
    try:
        return {"openvino": metadata.version("openvino")}
    except metadata.PackageNotFoundError:
        raise _missing() from None


class Session:
    """A Runner: outputs come in the graph's order, copied. Closing twice is harmless."""

    def __init__(self, model: Path, settings: Mapping[str, object], *,
                 padding: list[NDArray[np.float64]] | None = None, counted: bool = False) -> None:  # fmt: skip
        """`counted`: with OpenVINO's counters on, which `ran` reads."""
        chosen = Settings(**settings)  # type: ignore[arg-type]
        self._openvino: Any = _imported()
        try:
            core = _core()
            read = core.read_model(str(model))
            self._compiled: Any = core.compile_model(read, "CPU", chosen.properties() | {"PERF_COUNT": counted})
            self._request: Any = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise Problem("unsupported", f"OpenVINO refuses the model: {_sentence(error)}") from error
        self._padding = padding
        self.inputs: tuple[str, ...] = tuple(port.node.friendly_name for port in read.inputs)
        self.outputs: tuple[frozenset[str], ...] = tuple(frozenset(port.names) for port in read.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Raises Problem "unsupported" where the engine cannot run on these feeds; what it does not use is left out."""
        try:
            fed = [self._tensor(feeds[name]) for name in self.inputs]  # kept alive until it has run
            for index, tensor in enumerate(fed):
                self._request.set_input_tensor(index, tensor)
            self._request.infer()
            return [self._request.get_output_tensor(index).data.copy() for index in range(len(self.outputs))]
        except KeyError as error:
            raise Problem("unsupported", f"the engine cannot run: no input {error} was given") from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise Problem("unsupported", f"the engine cannot run: {_sentence(error)}") from error

    def ran(self) -> dict[str, Ran]:
        """What ran, by name: mean microseconds of all calls so far, cut to whole numbers."""
        counts = {one.node_name: one.real_time.total_seconds() * 1e6 for one in self._request.profiling_info}
        found = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            known, name = node.get_rt_info(), node.get_friendly_name()
            kind, precision, origins = (
                str(known[key].astype(str)) for key in ("layerType", "runtimePrecision", "originalLayersNames")
            )
            if kind not in _NOT_RUN:
                reads = (port.get_source_output().get_node().get_friendly_name() for port in node.inputs())
                found[name] = Ran(
                    name=name, operator=kind, precision=_PRECISIONS.get(precision, precision),
                    us=counts.get(name, 0.0), covers=tuple(filter(None, origins.split(","))),
                    reads=tuple(reads), writes=(name,), converts=kind in _CONVERSIONS,
                )  # fmt: skip
        return found

    def facts(self) -> dict[str, object]:
        """How often each operator occurs after OpenVINO's fusion, and in which precision it is computed."""
        operators: collections.Counter[str] = collections.Counter()
        computed: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for node in self._compiled.get_runtime_model().get_ops():
            known = node.get_rt_info()
            kind, precision = (str(known[name].astype(str)) for name in ("layerType", "runtimePrecision"))
            if kind not in _NOT_RUN:
                operators[kind] += 1
                computed[precision][kind] += 1
        return {
            "operators": dict(sorted(operators.items())),
            "precisions": {name: dict(sorted(counts.items())) for name, counts in sorted(computed.items())},
        }

    def close(self) -> None:
        self._request = self._compiled = self._padding = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensor(self, values: NDArray[Any]) -> Any:
        """The array's own memory, where OpenVINO may have it."""
        values = np.ascontiguousarray(values)
        return self._openvino.Tensor(values, shared_memory=values.flags.writeable)


@functools.cache
def _core() -> Any:
    """One of a process, never closed.

    Its processor plug-in lends the process a stack for signals, and takes it back when it goes. Of two that do
    not go in the reverse order of their coming the later gives back a stack that is gone, and the next signal
    (Ctrl-C, where Python's faulthandler is on) ends in a segmentation fault: seen with 2026.4.
    """
    return _imported().Core()


def _imported() -> Any:
    """The package, imported while its telemetry cannot be. Raises Problem "extra" where it is not installed."""
    before = sys.modules.get(_TELEMETRY, _ABSENT)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise _missing() from error
    finally:
        if before is _ABSENT:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
    return openvino


def _missing() -> Problem:
    return Problem("extra", "OpenVINO is not installed", 'pip install "petra-deploy[openvino]"')


def _named(outputs: tuple[frozenset[str], ...], wants: list[str]) -> list[str]:
    """One name of each output: the signature's, where it is among those that the tensor has."""
    return [
        wants[index] if index < len(wants) and wants[index] in names else min(names, default="?")
        for index, names in enumerate(outputs)
    ]


def _sentence(error: Exception) -> str:
    """The last line that says something, without where in OpenVINO's sources it was said."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said[-1].removeprefix("-- ") if said else type(error).__name__)[:300]
