"""A profile: what one engine did on one machine, with every call's time (docs/profiles.md).

    profile = profiles.read(Path("profiles/cpu-vnni/digits-cnn.json"))          # driver/profiles.py
    profile.scenario("single-stream", batch=1).latency.p99.high

Figures in it are a pure function of its raw rounds. A round of a single stream holds, beside the engine's
calls, those of the yardstick (worker/measure/yardstick.py), a fixed piece of arithmetic timed in turns with
it: two profiles of one machine are compared through it, since the machine's own speed drifts from hour to hour.
Its JSON Schema is docs/schemas/profile.json; a change that breaks readers makes a new `schema`, and
older ones are still read.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from petra_deploy.core.data import Data
from petra_deploy.core.outcome import Figure, Graph
from petra_deploy.core.workload import MetricSpec, Split

SCHEMA = "petra-deploy/profile/1"
ScenarioName = Literal["single-stream", "multi-stream", "offline", "server"]  # those of MLPerf's load generator
SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline", "server")
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted(Data):
    """What `bench` measures."""

    scenarios: tuple[ScenarioName, ...] = ("single-stream", "offline")
    batches: tuple[int, ...] = (1, 16)
    threads: tuple[int, ...] = ()  # none: what the bundle or the target says
    rounds: int = 5
    limit_ms: float | None = None  # of server
    streams: int = 8  # of multi-stream: rows a query
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Adopted(Data):
    """An ONNX file that the user brought, as a graph to build from, and rows to feed it."""

    graph: Graph
    split: Split
    metric: MetricSpec | None = None  # of rows with labels
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineFacts(Data):
    """Which engine. `file` is the file or bundle as it was named, relative to the profile's folder."""

    name: str
    file: str = ""
    sha256: str  # of model.onnx
    bytes: int
    runtime: str
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tail(Data):
    """Milliseconds a query; bounds by order statistics, for a server with the calls' dependence in them."""

    p50: Figure
    p90: Figure
    p95: Figure
    p99: Figure
    p999: Figure
    first: Figure | None = None  # the first call of a run, the caches having held something else


@dataclass(frozen=True, kw_only=True)
class Scenario(Data):
    """One way of asking. Every figure follows from `rounds`."""

    name: ScenarioName
    batch: int  # rows a query; of offline, rows a call
    threads: int
    settings: dict[str, object] = field(default_factory=dict)  # of the scenario: limit_ms, seed ...
    rounds: tuple[Record, ...]
    latency: Tail | None = None  # a query's; offline has none
    throughput: Figure | None = None  # rows per second; of server, the highest rate that kept the limit
    energy: Figure | None = None  # joules a row, of the whole package or card; None where nothing tells


@dataclass(frozen=True, kw_only=True)
class ColdStart(Data):
    """A new process from its start to its first answer, files being in the page cache."""

    total: Figure  # ms
    load: Figure  # ms, of which to open the engine
    first: Figure  # ms, of which the first call


@dataclass(frozen=True, kw_only=True)
class Benched(Data):
    """The answer of a Bench job."""

    scenarios: tuple[Scenario, ...]
    cold: ColdStart | None = None
    peak_memory: Figure | None = None  # bytes, of a process that serves the engine
    inputs: Literal["data", "random"] = "data"
    machine: dict[str, object] = field(default_factory=dict)
    sittings: tuple[Record, ...] = ()  # seed, core, state of the machine before and after
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile(Data):
    schema: Literal["petra-deploy/profile/1"] = "petra-deploy/profile/1"
    created: str  # UTC, ISO 8601; a label only
    target: str
    engine: EngineFacts
    measured: Benched

    def scenario(self, name: ScenarioName, batch: int, threads: int | None = None) -> Scenario | None:
        """The first of this name and batch size, and of these threads where they are given."""
        found = (s for s in self.measured.scenarios if s.name == name and s.batch == batch)
        return next((s for s in found if threads in (None, s.threads)), None)
