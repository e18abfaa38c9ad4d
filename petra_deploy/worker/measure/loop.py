"""Rounds: a fresh pair of engines each, runs of calls in random order, every call's time kept.

    round_ = one_round(openers, feeds, seed=1)          # {"candidate": {...}, "baseline": {...}}

A round opens both engines anew in random order with random padding, since a session's place in
memory moves its speed by more than its calls scatter. Inside, one engine runs at a time, in runs:
alternating single calls would let the larger model evict the smaller from the caches at each
switch and distort a ratio threefold. The first call of a run is kept apart. Nothing is dropped.

What is recorded is plain data and goes to the store as it is; core/rounds.py makes Figures of it.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Runner

Feeds = Mapping[str, NDArray[Any]]
Record = dict[str, Any]
SIDES = ("candidate", "baseline")

CALLS = 200  # hot calls of an engine in a round, where time permits
RUN_CALLS, RUN_SECONDS = 10, 40e-3  # a run is at least both: shorter ones still feel the other engine's caches
_IN_RUNS = 0.4  # of the seconds an engine gets, where its runs last no longer than they must
WARM_CALLS, WARM_SECONDS = 3, 50e-3  # and warming up too
GAP_SECONDS = 1.0  # a wait this long without work is a stop or a sleep, not the machine's speed
REPEATS = 3  # of interrupted rounds, in all


@dataclass(frozen=True)
class Effort:
    """What one batch size may cost an engine in a round."""

    seconds: float
    fewest_runs: int
    run_seconds: float = RUN_SECONDS  # the least that a run takes


SHORT = Effort(seconds=0.3, fewest_runs=2)  # every batch size but the first
SLOW_SECONDS = 0.3  # a call this long finds its caches cold in any case: runs of two will do


@runtime_checkable
class Away(Protocol):
    """A side whose engine is open in another process, which times it (worker/measure/partner.py)."""

    load_ns: int

    def timed(self, rows: Sequence[Feeds], calls: int, first: int = 0) -> tuple[list[int], list[int]]: ...
    def close(self) -> None: ...


Side = Runner | Away
Openers = Mapping[str, Callable[[int], Side]]


class _Interrupted(Exception):
    pass


def measure(
    openers: Openers, feeds: Mapping[int, Sequence[Feeds]], *, rounds: int, seed: int,
    seconds: float = 0.5, threads: int = 1, log: Callable[[str], None],
) -> list[Record]:  # fmt: skip
    """`rounds` rounds of the candidate against the baseline, at every batch size of `feeds`.

    Each engine runs for about `seconds` a round at the first size, less at the others. `openers`
    make a side's engine given a seed. Raises Problem when rounds are interrupted again and again.
    """
    sitting = Sitting(openers, seed=seed, seconds=seconds, threads=threads, log=log)
    return [sitting.round(feeds) for _ in range(rounds)]


class Sitting:
    """Rounds one by one. An interrupted one (the machine slept, the process was stopped) is discarded and repeated."""

    def __init__(
        self, openers: Openers, *, seed: int, seconds: float, threads: int = 1, run_seconds: float = RUN_SECONDS,
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._openers, self._seed, self._seconds, self._threads = openers, seed, seconds, threads
        self._run_seconds = run_seconds
        self._log = log
        self._attempts = self._interrupted = 0

    def round(self, feeds: Mapping[int, Sequence[Feeds]]) -> Record:
        """Raises Problem "lost" where rounds are interrupted again and again."""
        while self._interrupted <= REPEATS:
            seed = self._seed * 10_007 + self._attempts
            self._attempts += 1
            try:
                return one_round(
                    self._openers, feeds, seed=seed, seconds=self._seconds, threads=self._threads,
                    run_seconds=self._run_seconds,
                )  # fmt: skip
            except _Interrupted as gap:
                self._interrupted += 1
                self._log(f"round {self._attempts} is discarded and repeated: {gap}")
        raise Problem("lost", f"more than {REPEATS} rounds were interrupted: the process was stopped, or the machine "
                      "slept", "measure while the machine stays awake")  # fmt: skip


def one_round(
    openers: Openers, feeds: Mapping[int, Sequence[Feeds]], *, seed: int, seconds: float, threads: int = 1,
    run_seconds: float = RUN_SECONDS,
) -> Record:  # fmt: skip
    """{"seed", "threads", "opened": order, "load_ns": {side}, "batches": {batch: {side: times, "order"}}}.

    `threads` of the busier engine (0: a device does the work) decide whose processor time stands beside the
    clock's (`cpu_clock`).
    """
    clock = cpu_clock(threads)
    generator = np.random.default_rng(seed)
    opened = [SIDES[i] for i in generator.permutation(2)]
    engines: dict[str, Side] = {}
    load: dict[str, int] = {}
    try:
        for side in opened:
            start = time.perf_counter_ns()
            engine = engines[side] = openers[side](int(generator.integers(2**31)))
            load[side] = engine.load_ns if isinstance(engine, Away) else time.perf_counter_ns() - start
        asleep = _suspended()
        batches, first = {}, Effort(seconds, fewest_runs=3, run_seconds=run_seconds)
        for index, (batch, rows) in enumerate(feeds.items()):
            effort = replace(SHORT, run_seconds=run_seconds) if index else first
            batches[str(batch)] = _batch(engines, rows, effort, generator, clock)
        if _suspended() - asleep > 0.1:
            raise _Interrupted("the machine slept")
    finally:
        for engine in engines.values():
            engine.close()
    return {"seed": seed, "threads": threads, "opened": opened, "load_ns": load, "batches": batches}


def _batch(
    engines: Mapping[str, Side], rows: Sequence[Feeds], effort: Effort, generator: np.random.Generator,
    clock: Callable[[], int],
) -> Record:  # fmt: skip
    seconds = {side: _warm_up(engines[side], rows, effort) for side in SIDES}
    runs, lengths = plan(seconds, effort)
    record: Record = {side: {"first_ns": [], "hot_ns": [], "cpu_ns": []} for side in SIDES}
    record["order"] = []
    watch = _Watch(clock)
    for _ in range(runs):
        for side in [SIDES[i] for i in generator.permutation(2)]:
            record["order"].append(side)
            elsewhere = _run(engines[side], rows, lengths[side], record[side], clock)
            watch.check(record[side], lengths[side], elsewhere)
    return record


def plan(seconds: Mapping[str, float], effort: Effort) -> tuple[int, dict[str, int]]:
    """(runs of each engine, calls in a run of each) from the seconds that one call takes."""
    slowest = max(seconds.values())
    most = min(CALLS // RUN_CALLS, math.floor(_IN_RUNS * effort.seconds / effort.run_seconds))
    runs = max(effort.fewest_runs, min(most, math.floor(effort.seconds / (RUN_CALLS * slowest))))
    lengths = {}
    for side, each in seconds.items():
        wanted = max(RUN_CALLS, math.ceil(effort.run_seconds / each), math.ceil(CALLS / runs)) + 1  # the first is apart
        fewest = 2 if each > SLOW_SECONDS else 3
        lengths[side] = max(fewest, min(wanted, math.floor(effort.seconds / (runs * each))))
    return runs, lengths


def _warm_up(engine: Side, rows: Sequence[Feeds], effort: Effort) -> float:
    """Seconds of one call, after three calls or 50 ms, whichever is more; slow engines get fewer.

    A first call that outlasts the effort says nothing: on a GPU kernels are chosen and graphs captured in it.
    """

    def call(number: int) -> float:
        (wall,), _ = _calls(engine, rows, 1, number, time.perf_counter_ns)
        return max(wall / 1e9, 1e-7)

    first = call(0)
    times = [first] if first <= effort.seconds else []
    while not times or ((len(times) < WARM_CALLS or sum(times) < WARM_SECONDS) and sum(times) <= effort.seconds):
        times.append(call(len(times)))
    return statistics.median(times[len(times) // 2 :])


def _run(engine: Side, rows: Sequence[Feeds], calls: int, record: Record, clock: Callable[[], int]) -> int:
    """A run of `calls` onto the record; nanoseconds of processor that it took in another process."""
    walls, cpus = _calls(engine, rows, calls, 0, clock)
    record["first_ns"].append(walls[0])
    record["hot_ns"] += walls[1:]
    record["cpu_ns"] += cpus[1:]
    return sum(cpus) if isinstance(engine, Away) else 0


def _calls(
    engine: Side, rows: Sequence[Feeds], calls: int, first: int, clock: Callable[[], int]
) -> tuple[list[int], list[int]]:
    """What `timed` says, here or where the engine is."""
    return (
        engine.timed(rows, calls, first) if isinstance(engine, Away) else timed(engine.run, rows, calls, first, clock)
    )


def timed(
    run: Callable[[Feeds], Any], rows: Sequence[Feeds], calls: int, first: int, cpu_clock: Callable[[], int]
) -> tuple[list[int], list[int]]:
    """(by the clock, of the processor) nanoseconds of each call; feeds are `rows` in turn, from number `first`."""
    clock = time.perf_counter_ns
    walls, cpus = [], []
    for call in range(first, first + calls):
        feeds = rows[call % len(rows)]
        used = cpu_clock()
        start = clock()
        run(feeds)
        walls.append(clock() - start)
        cpus.append(cpu_clock() - used)
    return walls, cpus


def cpu_clock(threads: int) -> Callable[[], int]:
    """Of the calling thread where that does all the work, else of the process; nanoseconds."""
    return time.thread_time_ns if threads == 1 else time.process_time_ns


class _Watch:
    """Tells a run in which the clock went on and the process did not."""

    def __init__(self, cpu_clock: Callable[[], int]) -> None:
        self._cpu_clock = cpu_clock
        self._wall, self._cpu = time.perf_counter_ns(), cpu_clock()

    def check(self, record: Record, calls: int, elsewhere: int = 0) -> None:
        """Raises _Interrupted if, since the last check, one wait was longer than contention explains.

        `elsewhere` are the nanoseconds that another process has worked for this one meanwhile.
        """
        wall, cpu = time.perf_counter_ns(), self._cpu_clock()
        idle = (wall - self._wall) - (cpu - self._cpu) - elsewhere
        self._wall, self._cpu = wall, cpu
        longest = max([record["first_ns"][-1], *record["hot_ns"][-(calls - 1) :]])
        if idle > GAP_SECONDS * 1e9 and longest - statistics.median(record["cpu_ns"]) > 0.8 * idle:
            raise _Interrupted(f"the process stood still for {idle / 1e9:.1f} s")


def _suspended() -> float:
    """Seconds that the machine has slept since it started; 0 where the system does not say."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) - time.clock_gettime(time.CLOCK_MONOTONIC) if boot is not None else 0.0
