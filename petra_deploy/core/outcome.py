"""What came of a strategy: figures with their bounds and origins, never bare floats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

from annotated_types import Ge

from petra_deploy.core.data import Data
from petra_deploy.core.strategy import Fidelity, Strategy
from petra_deploy.core.target import Computing, Moving, Precision, Starting
from petra_deploy.core.workload import Signature

Origin = Literal["measured", "predicted", "counted"]
FailureKind = Literal[
    "input", "unsupported", "mismatch", "diverged", "timeout", "memory", "crash", "lost", "extra", "absent", "disk"
]
A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Figure(Data):
    """A number as it may leave the house. `low` and `high` bound it at 95% unless `note` says so.

    `value` is None where there were too few samples; `note` then says how many are needed.
    """

    value: float | None
    unit: str  # "ms", "1/s", "bytes", "ratio", "points"
    low: float | None = None
    high: float | None = None
    n: int = 1
    origin: Origin = "measured"
    note: str = ""

    def known(self) -> float:
        """The value, where the caller has made sure that there is one."""
        if self.value is None:
            raise ValueError(f"this figure has no value: {self.note or 'too few samples'}")
        return self.value


@dataclass(frozen=True, kw_only=True)
class ErrorBar(Data):
    """How far predictions may be off, either way, as factors; of `n` comparisons with measurements."""

    latency: Annotated[float, Ge(1)] = 3.0  # the first ever checked on a GPU was off by four (docs/measurements.md)
    speedup: Annotated[float, Ge(1)] = 3.0
    n: int = 0  # none: the factors are assumed
    device: str = ""  # that was measured

    @property
    def words(self) -> str:
        """Such as "within a factor of 1.3, latencies of 1.5 (as 9 of 10 ... were)"; the first is of speedups."""
        within = f"within a factor of {self.speedup:.3g}"
        if not self.n:
            return within
        latencies = "" if self.latency == self.speedup else f", latencies of {self.latency:.3g}"
        return f"{within}{latencies} (as 9 of 10 of the {self.n} that were measured on {self.device} were)"

    @property
    def note(self) -> str:
        if not self.n:
            either = f"bounds are a factor of {self.latency:g} either way"
            return f"by a latency model that nobody has measured on this target: {either}"
        return f"by a latency model: bounds hold for 9 of 10 of the {self.n} that were measured on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Work(Data):
    """What one operator of a graph has to do in one call. Counted, never timed."""

    op: str
    macs: float  # multiply-accumulates
    weight_bytes: float
    activation_bytes: float  # read and written
    precision: Precision
    inner: int = 0  # the width summed over, of a layer with weights
    outer: int = 0  # and the width put out
    taps: int = 1  # of a convolution's kernel: 9 of a 3x3
    steps: int = 1  # of a recurrent layer, one after the other
    joined: bool = False  # works element by element on what an operator before it hands it


@dataclass(frozen=True, kw_only=True)
class WorkSum(Data):
    """All that a graph has to do in one call."""

    operators: int
    macs: dict[Precision, float] = field(default_factory=dict)
    weight_bytes: float
    activation_bytes: float

    @classmethod
    def of(cls, work: Sequence[Work]) -> "WorkSum":
        macs: dict[Precision, float] = {}
        for each in work:
            if each.macs:
                macs[each.precision] = macs.get(each.precision, 0.0) + each.macs
        return cls(
            operators=len(work), macs=macs, weight_bytes=sum(each.weight_bytes for each in work),
            activation_bytes=sum(each.activation_bytes for each in work),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Attained(Data):
    """The rates of a processor, as small graphs showed them: the tables of a Target."""

    attained_gops: dict[Computing, float]
    attained_gb_s: dict[Moving, float]
    operator_us: dict[Starting, float]
    graphs: int  # that were measured
    median_error: float  # of the sum over operators on those graphs, relative
    machine: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph(Data):
    """An exported ONNX model in the store: the entry holds `model.onnx`."""

    key: str
    signature: Signature
    bytes: int
    facts: dict[str, object] = field(default_factory=dict)  # by technique; opset; parity; seconds


@dataclass(frozen=True, kw_only=True)
class Engine(Data):
    """What ships and is timed. For onnxruntime the entry holds `model.onnx`."""

    key: str
    graph: str  # the key of the graph it was built from
    backend: str
    signature: Signature
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    bytes: int
    facts: dict[str, object] = field(default_factory=dict)  # operators after the runtime's fusion


@dataclass(frozen=True, kw_only=True)
class Latency(Data):
    """Times of one call at one batch size, hot (the first call of each run is kept apart)."""

    batch: int
    p50: Figure
    p90: Figure
    p99: Figure
    first: Figure  # first call of a run, the other engine having run before
    throughput: Figure  # rows per second


@dataclass(frozen=True, kw_only=True)
class Measurement(Data):
    """A candidate and the baseline, measured interleaved in one run (worker/measure/loop.py).

    Of a target that is not here every figure is of origin "predicted" (worker/measure/predicted.py).
    """

    candidate: tuple[Latency, ...]  # one a batch size, in the order asked
    baseline: tuple[Latency, ...]
    speedups: tuple[Figure, ...]  # baseline / candidate, one a batch size; over rounds
    over_half: tuple[Figure, ...] = ()  # the same over the baseline in FP16; on a GPU, where that is what is served
    load: Figure  # ms to open the candidate's engine
    peak_memory: Figure  # bytes, of a process that serves the candidate
    work: tuple[WorkSum, ...] = ()  # the candidate's, one a batch size; where it was predicted
    rounds: str  # the store key of the raw rounds; empty where there were none
    machine: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def speedup(self) -> Figure:
        """At the first batch size asked for."""
        return self.speedups[0]


@dataclass(frozen=True, kw_only=True)
class Inferred(Data):
    """An engine's outputs over a split."""

    outputs: str  # their store key


@dataclass(frozen=True, kw_only=True)
class Score(Data):
    """The metric of an artifact on one split; the drop is paired, row by row, in points."""

    metric: str
    split: str
    n: int
    value: float
    outputs: str  # the store key of the artifact's outputs, for pairing
    baseline: float | None = None  # of the reference outputs on the same rows
    drop: Figure | None = None  # points, more is worse; None for the baseline itself
    drop_error: float = 0.0  # standard error of the drop, points
    divergence: float | None = None  # from the reference outputs on the same rows (core/divergence.py); 0: none


@dataclass(frozen=True, kw_only=True)
class OnCpu(Data):
    """An engine's integer sums as one kind of processor computes them, against exact sums."""

    holds: bool
    why: str  # a sentence
    drop_points: float | None = None  # of the metric, from exact sums; None: not computed
    largest_difference: float = 0.0  # of any output
    rows: int = 0  # of which an output differs
    saturated: dict[str, int] = field(default_factory=dict)  # node -> pair sums cut to 16 bits; those with any


@dataclass(frozen=True, kw_only=True)
class Certified(Data):
    """On which kinds of processor (core/cpus.py) the accuracy of an engine holds."""

    cpus: dict[str, OnCpu]
    rows: int  # of calibration data that were computed; 0: a bound settled it
    metric: str
    allowed_points: float  # that the metric may fall beyond the drop that was measured

    @property
    def holds_on(self) -> tuple[str, ...]:
        return tuple(name for name, found in self.cpus.items() if found.holds)


@dataclass(frozen=True, kw_only=True)
class Compiled(Data):
    """What a compiler that needs no device says to a graph."""

    compiler: str  # "TensorRT-RTX 1.7.1"
    refused: tuple[str, ...] = ()  # a sentence for each node


@dataclass(frozen=True, kw_only=True)
class Done(Data, Generic[A]):
    value: A
    seconds: float
    log: str = ""  # a file of the run folder
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class Failed(Data):
    job: str
    kind: FailureKind
    reason: str
    hint: str = ""
    log: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.job}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Outcome(Data):
    strategy: Strategy
    fidelity: Fidelity
    seconds: float = 0.0
    round_seconds: float = 0.0  # of one round of measurement
    graph: Graph | None = None
    engine: Engine | None = None
    measurement: Measurement | None = None
    score: Score | None = None  # on the selection split
    test: Score | None = None  # on the test split: finalists only, once
    failed: Failed | None = None
    notes: tuple[str, ...] = ()  # for the manifest

    @property
    def ok(self) -> bool:
        return self.failed is None and self.measurement is not None and self.score is not None


@dataclass(frozen=True, kw_only=True)
class Goal(Data):
    objective: Literal["latency", "throughput", "size"] = "latency"
    max_drop: float = 1.0  # points
    batches: tuple[int, ...] = (1, 16)  # the first is the one that latency means


@dataclass(frozen=True, kw_only=True)
class Budget(Data):
    trials: int | None = None
    seconds: float = 900.0


@dataclass(frozen=True, kw_only=True)
class Front(Data):
    """The best strategies, fastest first; `best` is the one that ships (None: none met the goal)."""

    outcomes: tuple[Outcome, ...] = ()
    best: int | None = None
    why: str = ""

    @property
    def chosen(self) -> Outcome | None:
        return None if self.best is None else self.outcomes[self.best]
