"""The jobs: plain data that the driver hands to a worker, and what each answers.

`run(job: Job[A]) -> Done[A] | Failed` is all that a stage knows of the outside. Files are named
by keys of the store. What a job may use up is in `limits` and takes no part in its cache key.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from annotated_types import Ge, Gt

from petra_deploy.core.comparison import Compared, Gate
from petra_deploy.core.data import Data
from petra_deploy.core.operators import Profiled
from petra_deploy.core.plan import Inspected, Layout, Probed
from petra_deploy.core.profile import Adopted, Benched, ScenarioName
from petra_deploy.core.strategy import FULL, Fidelity, Strategy
from petra_deploy.core.target import Target

# isort: off
from petra_deploy.core.outcome import (
    Attained, Certified, Compiled, Done, Engine, ErrorBar, Failed, Graph, Inferred, Measurement, Score,
)  # fmt: skip
from petra_deploy.core.workload import (
    DataSource, Loaded, LoadOptions, MetricSpec, ModelSource, Signature, Split, Workload,
)  # fmt: skip
# isort: on

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Limits(Data):
    seconds: float = 600.0
    memory_gb: float | None = None  # None: most of this machine's


@dataclass(frozen=True, kw_only=True)
class Job(Data, Generic[A]):
    limits: Limits = field(default_factory=Limits)

    kind: ClassVar[str]
    answer: ClassVar[type]
    exclusive: ClassVar[bool] = False  # alone on the device
    cached: ClassVar[bool] = True
    fresh: ClassVar[bool] = False  # a new process, without torch


@dataclass(frozen=True, kw_only=True)
class Load(Job[Loaded]):
    model: ModelSource
    data: DataSource
    options: LoadOptions

    kind: ClassVar[str] = "load"
    answer: ClassVar[type] = Loaded
    cached: ClassVar[bool] = False  # its answer is named by content, so later keys hold


@dataclass(frozen=True, kw_only=True)
class Inspect(Job[Inspected]):
    workload: Workload
    target: Target

    kind: ClassVar[str] = "inspect"
    answer: ClassVar[type] = Inspected


@dataclass(frozen=True, kw_only=True)
class Probe(Job[Probed]):
    workload: Workload
    layout: Layout
    device: str = "cpu"

    kind: ClassVar[str] = "probe"
    answer: ClassVar[type] = Probed


@dataclass(frozen=True, kw_only=True)
class Transform(Job[Graph]):
    workload: Workload
    strategy: Strategy
    fidelity: Fidelity = FULL
    device: str = "cpu"  # for training: "cpu", "cuda", "mps"

    kind: ClassVar[str] = "transform"
    answer: ClassVar[type] = Graph


@dataclass(frozen=True, kw_only=True)
class Build(Job[Engine]):
    graph: Graph
    target: Target
    settings: dict[str, object] = field(default_factory=dict)

    kind: ClassVar[str] = "build"
    answer: ClassVar[type] = Engine


@dataclass(frozen=True, kw_only=True)
class Measure(Job[Measurement]):
    engine: Engine
    baseline: Engine
    target: Target
    split: Split  # inputs to feed
    batches: tuple[int, ...] = (1, 16)
    rounds: Annotated[int, Ge(1)] = 3
    seconds: Annotated[float, Gt(0)] = 0.5  # about what each engine runs in a round, at the first batch size
    seed: int = 0
    earlier: Measurement | None = None  # of the same two engines: its rounds and these make one measurement

    kind: ClassVar[str] = "measure"
    answer: ClassVar[type] = Measurement
    exclusive: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    fresh: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Predict(Job[Measurement]):
    """In place of Measure where the target is not here."""

    engine: Engine
    baseline: Engine
    target: Target
    split: Split  # inputs to feed
    batches: tuple[int, ...] = (1, 16)

    error: ErrorBar = field(default_factory=ErrorBar)

    kind: ClassVar[str] = "predict"
    answer: ClassVar[type] = Measurement


@dataclass(frozen=True, kw_only=True)
class Rates(Job[Attained]):
    """What this processor attains on small graphs; of a target that it is."""

    target: Target
    seconds: Annotated[float, Gt(0)] = 0.15  # that each graph runs

    kind: ClassVar[str] = "rates"
    answer: ClassVar[type] = Attained
    exclusive: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    fresh: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Infer(Job[Inferred]):
    """Run `engine` over `split`: what is left of Scored on a machine that has the runtime, but not the metric."""

    engine: Engine
    target: Target
    split: Split

    kind: ClassVar[str] = "infer"
    answer: ClassVar[type] = Inferred
    cached: ClassVar[bool] = False  # the score made of it is


@dataclass(frozen=True, kw_only=True)
class Scored(Job[Score]):
    """Run `engine` over `split`; with `reference` outputs (a key) the drop is paired to them.

    With `inferred` (a key) the engine's outputs are those, from another machine, and it is not run here.
    """

    engine: Engine
    target: Target
    split: Split
    split_name: str
    metric: MetricSpec
    signature: Signature
    reference: str | None = None
    inferred: str | None = None

    kind: ClassVar[str] = "score"
    answer: ClassVar[type] = Score


@dataclass(frozen=True, kw_only=True)
class Certify(Job[Certified]):
    """On which processors the metric of `engine` holds, by the arithmetic of each on rows of `split`."""

    engine: Engine
    split: Split  # calibration rows
    metric: MetricSpec
    instructions: tuple[str, ...]  # of the processor that the engine was scored on
    allowed_points: float  # that the metric may fall beyond what was measured there
    rows: Annotated[int, Ge(1)] = 256

    kind: ClassVar[str] = "certify"
    answer: ClassVar[type] = Certified


@dataclass(frozen=True, kw_only=True)
class CompileCheck(Job[Compiled]):
    """Whether TensorRT-RTX compiles the graph of `engine` for a compute capability that is not here."""

    engine: Engine
    capability: str  # "8.9"

    kind: ClassVar[str] = "compile_check"
    answer: ClassVar[type] = Compiled
    fresh: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Adopt(Job[Adopted]):
    """An ONNX file as it is, and rows to feed it: what `bench` and `compare` start from."""

    model: str  # path of a .onnx file
    data: DataSource = field(default_factory=DataSource)  # none: rows are made up
    inputs: tuple[str, ...] = ()  # "name:float32[1,3,224,224]", as given
    metric: str | None = None

    kind: ClassVar[str] = "adopt"
    answer: ClassVar[type] = Adopted
    cached: ClassVar[bool] = False  # of files that may change


@dataclass(frozen=True, kw_only=True)
class Bench(Job[Benched]):
    """One engine in the scenarios of MLPerf's load generator."""

    engine: Engine
    target: Target
    split: Split  # inputs to feed
    scenarios: tuple[ScenarioName, ...] = ("single-stream",)
    batches: tuple[int, ...] = (1, 16)
    rounds: Annotated[int, Ge(1)] = 5
    seconds: Annotated[float, Gt(0)] = 1.0  # about what a scenario runs in a round, at each batch size
    limit_ms: float | None = None  # of server: p99 must keep it; None: five times the single stream's p50
    streams: Annotated[int, Ge(1)] = 8  # of multi-stream: rows a query
    starts: Annotated[int, Ge(0)] = 5  # new processes, for the cold start and the memory
    seed: int = 0

    kind: ClassVar[str] = "bench"
    answer: ClassVar[type] = Benched
    exclusive: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    fresh: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Compare(Job[Compared]):
    """Two engines in paired rounds until every gate on latency is decided, or after `most_rounds`.

    With `overlay` each runs in a process of its own, and that of `new` imports from that folder first.
    """

    base: Engine
    new: Engine
    target: Target
    split: Split  # inputs to feed both
    gates: tuple[Gate, ...]  # those on latency; their batch sizes are measured
    overlay: str | None = None  # path of driver/overlay.py's folder, in the store
    most_rounds: Annotated[int, Ge(4)] = 20
    seconds: Annotated[float, Gt(0)] = 0.25  # about what each engine runs in a round, at each batch size
    seed: int = 0

    kind: ClassVar[str] = "compare"
    answer: ClassVar[type] = Compared
    exclusive: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    fresh: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class ProfileOps(Job[Profiled]):
    """Where the time of `engine` goes, operator by operator; with a base, both in turns."""

    engine: Engine
    base: Engine | None = None
    target: Target
    split: Split  # inputs to feed both
    batch: Annotated[int, Ge(1)] = 1
    rounds: Annotated[int, Ge(2)] = 8
    seconds: Annotated[float, Gt(0)] = 0.8  # about what each engine runs in a round, with and without the profiler
    seed: int = 0

    kind: ClassVar[str] = "profile_ops"
    answer: ClassVar[type] = Profiled
    exclusive: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    fresh: ClassVar[bool] = True


_KINDS: tuple[type[Any], ...] = (
    Load, Inspect, Probe, Transform, Build, Measure, Predict, Rates, Infer, Scored, Certify, CompileCheck,
    Adopt, Bench, Compare, ProfileOps,
)  # fmt: skip
JOBS: dict[str, type[Any]] = {job.kind: job for job in _KINDS}


class Run(Protocol):
    """The door: `dispatch.run` in the driver, an inline runner in tests."""

    def __call__(self, job: Job[A]) -> Done[A] | Failed: ...
