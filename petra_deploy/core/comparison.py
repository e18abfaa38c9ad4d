"""A comparison of two engines: its gates, its paired rounds, and what came of each gate.

    comparison.verdicts[0].verdict          # "fail", "pass" or "inconclusive"

The verdicts of a file are a pure function of the rest of it (core/verdict.py). docs/comparing.md explains them;
the JSON Schema is docs/schemas/comparison.json.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from petra_deploy.core.data import Data
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import EngineFacts

What = Literal["latency", "size", "metric"]
Decision = Literal["fail", "pass", "inconclusive"]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gate(Data):
    """What may not get worse, and by how much. Gates of one comparison share `alpha`."""

    what: What
    limit: Annotated[float, Ge(0)]  # of latency and size a share (0.05: 5% more); of the metric points of drop
    batch: Annotated[int, Ge(1)] = 1  # of latency
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.05  # this gate's part of it; either error stays at half


@dataclass(frozen=True, kw_only=True)
class Compared(Data):
    """The answer of a Compare job: paired rounds of `base` and `new` (worker/measure/loop.py), as they were."""

    rounds: tuple[Record, ...]
    cpu_seconds: float  # that it took
    machine: dict[str, object] = field(default_factory=dict)
    sittings: tuple[Record, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict(Data):
    gate: Gate
    verdict: Decision
    figure: Figure  # new / base of latency and size; points of drop of the metric. The interval is the test's own
    why: str  # a sentence


@dataclass(frozen=True, kw_only=True)
class Comparison(Data):
    """A whole comparison. Without paired rounds it is of two profiles, through the yardstick, and worth less."""

    schema: Literal["petra-deploy/comparison/1"] = "petra-deploy/comparison/1"
    created: str  # UTC, ISO 8601; a label only
    target: str
    base: EngineFacts
    new: EngineFacts
    paired: bool  # measured in turns in one run; else recorded apart
    gates: tuple[Gate, ...]
    rounds: tuple[Record, ...]  # {"batches": {batch: {"baseline": calls, "candidate": calls}}}; candidate is new
    drop: Figure | None = None  # points, of the metric of `new` below that of `base`, on the same rows
    metric: str = ""
    machine: dict[str, object] = field(default_factory=dict)
    sittings: tuple[Record, ...] = ()
    warnings: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
