"""manifest.json: what a bundle is and every figure it was chosen by. docs/manifest.md explains each field.

    manifest = files.read_json(bundle / "manifest.json", Manifest)
    manifest.speedup.value, manifest.metric.drop_points

A figure that is `null` had too few samples. Paths are relative to the bundle. Its JSON Schema is
docs/schemas/manifest.json; a change that breaks readers makes a new `schema`.
"""

from dataclasses import dataclass, field
from typing import Literal

from petra_deploy.core.cpus import CPUS
from petra_deploy.core.data import Data
from petra_deploy.core.outcome import Certified, Figure, Goal, Latency, Origin
from petra_deploy.core.workload import Form, TensorSpec

Schema = Literal["petra-deploy/manifest/1"]


@dataclass(frozen=True, kw_only=True)
class TargetFacts(Data):
    name: str
    runtime: str
    device: str
    instructions: tuple[str, ...] = ()  # of the CPU that the figures and the int8 weights hold for


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Data):
    name: str
    form: Form
    sha256: str  # of the file that the user brought
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Percentiles(Data):
    """Milliseconds a call, hot. `first` is the first call after another model has run."""

    p50: float | None
    p90: float | None
    p99: float | None
    first: float | None
    bounds: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)  # 95%
    n: int
    origin: Origin

    @classmethod
    def of(cls, latency: Latency) -> "Percentiles":
        figures = {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99, "first": latency.first}
        return cls(
            **{name: figure.value for name, figure in figures.items()},
            bounds={name: (figure.low, figure.high) for name, figure in figures.items()},
            n=latency.p50.n,
            origin=latency.p50.origin,
        )


@dataclass(frozen=True, kw_only=True)
class AtBatch(Data):
    batch: int
    latency_ms: Percentiles
    throughput_per_s: float | None  # rows, not calls
    speedup: float | None  # of the candidate over the baseline at this batch size


@dataclass(frozen=True, kw_only=True)
class Side(Data):
    """The baseline or the candidate: the artifact and its figures, both from one interleaved run."""

    file: str
    sha256: str
    bytes: int
    latency_ms: Percentiles  # at the first batch size asked for
    throughput_per_s: float | None  # rows; the most over the batch sizes in `by_batch`
    by_batch: tuple[AtBatch, ...]


@dataclass(frozen=True, kw_only=True)
class Ratio(Data):
    """baseline latency / candidate latency at `batch`; the interval is over rounds of fresh sessions.

    Where `origin` is "predicted" there were no rounds, and the bounds are the latency model's error bar.
    """

    value: float
    low: float | None
    high: float | None
    n: int  # rounds
    batch: int
    origin: Origin

    @classmethod
    def of(cls, figure: Figure, batch: int) -> "Ratio":
        return cls(value=figure.known(), low=figure.low, high=figure.high, n=figure.n, batch=batch,
                   origin=figure.origin)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetricFacts(Data):
    """The metric of both artifacts on the same rows. `drop_points`: more is worse, paired by row."""

    name: str
    split: str  # "test", or "selection" in a bundle written before the end of a run
    n: int
    baseline: float
    candidate: float
    drop_points: float
    low: float | None
    high: float | None
    max_drop: float  # what was allowed
    higher_is_better: bool
    labelled: bool  # false: the metric compares with the original's outputs, not with the truth
    data: Literal["data", "random"]  # random: on made-up inputs, since no data was given
    origin: Origin = "measured"


@dataclass(frozen=True, kw_only=True)
class ExampleInput(Data):
    """A shape and a range of values seen in the calibration data; example.py draws from it."""

    shape: tuple[int, ...]  # of one row, with every dynamic dimension filled in
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RuntimeFacts(Data):
    """How the engine was opened when it was measured; open it the same way."""

    name: str
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest(Data):
    schema: Schema = "petra-deploy/manifest/1"
    created: str  # UTC, ISO 8601; a label only
    target: TargetFacts
    model: ModelFacts
    files: dict[str, str]  # path -> sha256, of every file but this one; integrity, not origin
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    techniques: tuple[str, ...]  # in their order; strategy.json has their options
    baseline: Side
    candidate: Side
    speedup: Ratio
    speedup_over_fp16: Ratio | None = None  # over the baseline in FP16; on a GPU only
    size_ratio: float  # baseline bytes / candidate bytes
    load_ms: float | None
    peak_memory_bytes: float | None
    metric: MetricFacts
    holds_on: tuple[str, ...] = ()  # kinds of processor (core/cpus.py); of a GPU, none
    certified: Certified | None = None  # of --certify: why they hold, and the others do not
    goal: Goal
    candidates_considered: int
    runtime: RuntimeFacts
    example_inputs: dict[str, ExampleInput] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, object] = field(default_factory=dict)
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> str:
        """On which processors the accuracy holds and how that is known, on one line; empty of a GPU."""
        if not self.holds_on:
            return ""
        line = f"accuracy holds on: {', '.join(self.holds_on)}"
        if self.certified is None:
            settled = len(self.holds_on) == len(CPUS)
            return (
                f"{line} ({'no 8-bit sum can saturate' if settled else 'as measured; --certify computes the others'})"
            )
        others = {name: found.why for name, found in self.certified.cpus.items() if not found.holds}
        rest = f"; not on {', '.join(others)}: {next(iter(others.values()))}" if others else ""
        rows = f"on {self.certified.rows} calibration rows" if self.certified.rows else "by a bound"
        return f"{line} (certified {rows}){rest}"
