"""The scenarios of MLPerf's load generator, but the server (server.py): a stream, several, and all rows at once.

    rounds = streamed(opener, feeds, Effort(rounds=5, seconds=1.0, log=print))       # single-stream
    rounds = streamed(in_queries(opener, feeds, 8), feeds, effort)                   # multi-stream: 8 calls a query
    rounds = offline(opener, feeds, rows=16, effort=effort)

Every round opens the engine anew. A stream is timed by loop.py in runs, in turns with the yardstick. What a round
holds is plain data (docs/profiles.md); core/tails.py makes the figures. Source: Reddi et al., "MLPerf Inference
Benchmark", arXiv 1911.02549, section III.D.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Runner
from petra_deploy.worker.measure import loop
from petra_deploy.worker.measure.energy import Meter
from petra_deploy.worker.measure.yardstick import Yardstick

Feeds = Mapping[str, NDArray[Any]]
Opener = Callable[[int], Runner]
Record = dict[str, Any]
GAP_SECONDS = 1.0  # longer than the middle call by this: the process was stopped, or the machine slept
REPEATS = 3  # of interrupted rounds
_WARM_CALLS, _WARM_SECONDS, _WARM_AT_MOST = 3, 50e-3, 2.0
_FEWEST_CALLS = 3  # of an offline round


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a scenario may cost."""

    rounds: int
    seconds: float  # about, of each round
    threads: int = 1
    seed: int = 0
    meter: Meter | None = None  # of energy, where this machine has one
    log: Callable[[str], None]

    def seeds(self) -> Sequence[int]:
        return [self.seed * 10_007 + round_ for round_ in range(self.rounds)]


def streamed(opener: Opener, feeds: Sequence[Feeds], effort: Effort, *, rows: int) -> list[Record]:
    """{"seed", "load_ns", "order", "engine": times, "yardstick": times} a round; `rows` a query, for the energy."""
    made = []
    openers: dict[str, Callable[[int], Runner]] = {"candidate": opener, "baseline": Yardstick}
    for one in loop.measure(openers, {rows: feeds}, rounds=effort.rounds, seed=effort.seed, seconds=effort.seconds,
                            threads=effort.threads, log=effort.log):  # fmt: skip
        times = one["batches"][str(rows)]
        order = ["engine" if side == "candidate" else "yardstick" for side in times["order"]]
        made.append({"seed": one["seed"], "load_ns": one["load_ns"]["candidate"], "order": order,
                     "engine": times["candidate"], "yardstick": times["baseline"]})  # fmt: skip
    if effort.meter is not None:  # apart: reading a counter inside a run would be timed with it
        for one, calls in zip(made, _back_to_back(opener, feeds, effort, rows), strict=True):
            one["energy"] = calls["energy"]
    return made


def offline(opener: Opener, feeds: Sequence[Feeds], effort: Effort, *, rows: int) -> list[Record]:
    """{"seed", "load_ns", "rows", "calls", "elapsed_ns", "energy"} a round: calls back to back until time is up."""
    return _back_to_back(opener, feeds, effort, rows)


def in_queries(opener: Opener, feeds: Sequence[Feeds], calls: int) -> Opener:
    """Engines whose call is a query: `calls` calls, one after the other, each with the next feeds."""
    return lambda seed: _Queries(opener(seed), feeds, calls)


def warm(engine: Runner, feeds: Sequence[Feeds]) -> float:
    """Seconds of a call, after some that do not count; never more than about two seconds of them."""
    times: list[float] = []
    while len(times) < _WARM_CALLS or sum(times) < _WARM_SECONDS:
        start = time.perf_counter()
        engine.run(feeds[len(times) % len(feeds)])
        times.append(max(time.perf_counter() - start, 1e-7))
        if sum(times) > _WARM_AT_MOST and len(times) > 1:
            break
    return float(np.median(times[len(times) // 2 :]))


def uninterrupted(make: Callable[[int], tuple[Record, float]], seed: int, log: Callable[[str], None]) -> Record:
    """The record that `make(seed)` gives beside the longest that it stood still, made again where that was too long.

    Raises Problem where that goes on.
    """
    for attempt in range(1 + REPEATS):
        record, still = make(seed + attempt * 7_000_003)
        if still < GAP_SECONDS:
            return record
        log(f"a round is discarded and repeated: the process stood still for {still:.1f} s")
    raise Problem("lost", f"{1 + REPEATS} rounds running were interrupted: the process was stopped, or the machine "
                  "slept", "measure while the machine stays awake")  # fmt: skip


def longest_stop(nanoseconds: Sequence[int]) -> float:
    """By how many seconds the longest of these outlasts the middle one."""
    return float(max(nanoseconds) - np.median(nanoseconds)) / 1e9


def opened(opener: Opener, seed: int) -> tuple[Runner, int]:
    """An engine, and the nanoseconds that it took to open."""
    start = time.perf_counter_ns()
    engine = opener(seed)
    return engine, time.perf_counter_ns() - start


def _back_to_back(opener: Opener, feeds: Sequence[Feeds], effort: Effort, rows: int) -> list[Record]:
    def one(seed: int) -> tuple[Record, float]:
        engine, load = opened(opener, seed)
        with engine:
            warm(engine, feeds)
            before = effort.meter.read() if effort.meter else None
            clock, calls = time.perf_counter_ns, list[int]()
            start = last = clock()
            while len(calls) < _FEWEST_CALLS or last - start < effort.seconds * 1e9:
                engine.run(feeds[len(calls) % len(feeds)])
                now = clock()
                calls.append(now - last)
                last = now
            joules = effort.meter.joules(before) if effort.meter and before is not None else None
        done = rows * len(calls)
        energy = None if joules is None else {"joules": joules, "rows": done}
        record = {"seed": seed, "load_ns": load, "rows": done, "calls": len(calls), "elapsed_ns": last - start,
                  "energy": energy}  # fmt: skip
        return record, longest_stop(calls)

    return [uninterrupted(one, seed, effort.log) for seed in effort.seeds()]


class _Queries:
    """A Runner that answers a query of several calls."""

    def __init__(self, engine: Runner, feeds: Sequence[Feeds], calls: int) -> None:
        self._engine, self._next, self._calls = engine, itertools.cycle(feeds), calls

    def run(self, feeds: Feeds) -> list[NDArray[Any]]:
        return [output for _ in range(self._calls) for output in self._engine.run(next(self._next))]

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
