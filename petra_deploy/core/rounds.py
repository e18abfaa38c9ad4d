"""From the recorded rounds to Figures and warnings: a pure function of that record.

    candidate, baseline, speedups, load, notes = figures(record["rounds"])

Whoever keeps the record can repeat every number of a report from it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import stats
from petra_deploy.core.outcome import Figure, Latency

Record = dict[str, Any]
_CPU_DIFFERENCE = math.log(1.10)
_DRIFT = 0.05
_TAKEN = 1.05


class Figures(NamedTuple):
    candidate: tuple[Latency, ...]
    baseline: tuple[Latency, ...]
    speedups: tuple[Figure, ...]
    load: Figure
    warnings: tuple[str, ...]


def figures(rounds: Sequence[Record]) -> Figures:
    """Latency of both sides and their ratio, at each batch size in the order measured."""
    batches = list(rounds[0]["batches"])
    loads = [one["load_ns"]["candidate"] / 1e6 for one in rounds]
    return Figures(
        candidate=tuple(_latency(rounds, batch, "candidate") for batch in batches),
        baseline=tuple(_latency(rounds, batch, "baseline") for batch in batches),
        speedups=tuple(_speedup(rounds, batch) for batch in batches),
        load=stats.spread(loads, "ms"),
        warnings=tuple(_warnings(rounds, batches)),
    )


def log_ratios(rounds: Sequence[Record], batch: str, clock: str = "hot_ns") -> list[float]:
    """log(candidate / baseline) of the median calls, one a round that measured this batch size.

    Of two records made at different times each side is taken relative to the yardstick timed with it.
    """
    measured = [one["batches"][batch] for one in rounds if batch in one["batches"]]
    found = []
    for calls in measured:
        ratio = math.log(_middle(calls["candidate"][clock]) / _middle(calls["baseline"][clock]))
        if sticks := calls.get("yardsticks"):
            ratio -= math.log(_middle(sticks["candidate"][clock]) / _middle(sticks["baseline"][clock]))
        found.append(ratio)
    return found


def fair_log_ratios(rounds: Sequence[Record], batch: str) -> tuple[list[float], int]:
    """One log(candidate / baseline) a round, fair on a machine that is not quiet; and in how many the core was taken.

    Of each pair of runs that followed one another the log ratio of their median calls, and of these the median: where a
    machine is slow for part of a round, both runs of a pair are. (The medians of all calls would jump between the slow
    and the fast part.) In rounds in which other programs took the core it is made of processor time, since the clock's
    median jumps too where a call lasts as long as a time slice. Processor time is of one thread only.
    """
    measured = [one["batches"][batch] for one in rounds if batch in one["batches"]]
    if not measured or rounds[0]["threads"] != 1:
        return [_paired(calls, "hot_ns") for calls in measured], 0
    taken = [_taken(calls) for calls in measured]
    return [_paired(c, "cpu_ns" if away else "hot_ns") for c, away in zip(measured, taken, strict=True)], sum(taken)


def _paired(calls: Record, clock: str) -> float:
    """Of one round; with yardsticks, of each side against its own."""
    if sticks := calls.get("yardsticks"):
        candidate = _of_pairs(calls["candidate"], sticks["candidate"], clock)
        return candidate - _of_pairs(calls["baseline"], sticks["baseline"], clock)
    return _of_pairs(calls["candidate"], calls["baseline"], clock)


def _of_pairs(one: Record, other: Record, clock: str) -> float:
    pairs = zip(_middles(one, clock), _middles(other, clock), strict=False)
    return statistics.median(math.log(a / b) for a, b in pairs)


def _middles(side: Record, clock: str) -> list[float]:
    """The median call of each run; a run has one first call."""
    runs = np.array_split(np.asarray(side[clock], dtype=np.float64), max(1, len(side.get("first_ns", ()))))
    return [max(float(np.median(run)), 1.0) for run in runs if len(run)]


def _taken(calls: Record) -> bool:
    """Whether the median call of any side took over 5% longer by the clock than by processor time."""
    sides = [calls["candidate"], calls["baseline"], *calls.get("yardsticks", {}).values()]
    return any(_middle(side["hot_ns"]) > _TAKEN * _middle(side["cpu_ns"]) for side in sides)


def _middle(times: Sequence[int]) -> float:
    return max(float(statistics.median(times)), 1.0)


def drift(rounds: Sequence[Record]) -> dict[str, list[dict[str, float]]]:
    """Of each side at the first batch size: the last third of a round's calls against the first.

    `ratio` is of their medians, `p` of the sign test; one entry a round.
    """
    batch = next(iter(rounds[0]["batches"]))
    found: dict[str, list[dict[str, float]]] = {}
    for side in ("candidate", "baseline"):
        found[side] = []
        for one in rounds:
            calls = np.asarray(one["batches"][batch][side]["hot_ns"], dtype=np.float64)
            third = max(1, len(calls) // 3)
            first, last = calls[:third], calls[-third:]
            ratio = float(np.median(last) / max(float(np.median(first)), 1.0))
            found[side].append({"ratio": ratio, "p": stats.sign_test(first, last)})
    return found


def contended(rounds: Sequence[Record], batch: str) -> tuple[float, float] | None:
    """(speedup by the clock, by processor time) where they differ by over 10%; None where not.

    A long call is preempted more often than a short one, so on a shared core the clock flatters
    the smaller engine by far more than the rounds scatter. With several threads processor time
    says nothing of the kind.
    """
    if rounds[0]["threads"] != 1:
        return None
    wall = -statistics.fmean(log_ratios(rounds, batch))
    cpu = -statistics.fmean(log_ratios(rounds, batch, "cpu_ns"))
    return (math.exp(wall), math.exp(cpu)) if abs(wall - cpu) > _CPU_DIFFERENCE else None


def processor_ratio(rounds: Sequence[Record], batch: str) -> float | None:
    """The middle log(candidate / baseline) by processor time; None where that is not all work (threads, a GPU)."""
    if rounds[0]["threads"] != 1:
        return None
    return statistics.median(_paired(one["batches"][batch], "cpu_ns") for one in rounds if batch in one["batches"])


def _speedup(rounds: Sequence[Record], batch: str) -> Figure:
    """Over rounds; on a contended core the bounds also span what processor time says."""
    figure = stats.speedup(log_ratios(rounds, batch))
    both = contended(rounds, batch)
    if both is None or figure.low is None or figure.high is None:
        return figure
    note = "; ".join(filter(None, [figure.note, "contended: bounds span clock and processor time"]))
    return replace(figure, low=min(figure.low, both[1]), high=max(figure.high, both[1]), note=note)


def _latency(rounds: Sequence[Record], batch: str, side: str) -> Latency:
    def times(key: str) -> list[NDArray[np.float64]]:
        return [np.asarray(one["batches"][batch][side][key], dtype=np.float64) / 1e6 for one in rounds]

    hot = times("hot_ns")
    pooled, p50 = np.concatenate(hot), stats.median(hot, "ms")
    return Latency(
        batch=int(batch),
        p50=p50,
        p90=stats.percentile(pooled, 0.90, "ms"),
        p99=stats.percentile(pooled, 0.99, "ms"),
        first=stats.median(times("first_ns"), "ms"),
        throughput=stats.rate(p50, int(batch)),
    )


def _warnings(rounds: Sequence[Record], batches: Sequence[str]) -> list[str]:
    found = []
    for batch in batches:
        if both := contended(rounds, batch):
            found.append(
                f"at batch {batch} the speedup is {both[0]:.2f}x by the clock and {both[1]:.2f}x by "
                "processor time: other programs took the core; measure again on a quiet machine"
            )
    for side, thirds in drift(rounds).items():
        changes = [third["ratio"] - 1 for third in thirds]
        steady = all(c > _DRIFT for c in changes) or all(c < -_DRIFT for c in changes)
        if len(thirds) > 2 and steady and all(third["p"] < 0.01 for third in thirds):
            found.append(
                f"the {side} drifted by {statistics.median(changes):+.0%} within every round: the processor may be "
                "throttling; let it cool, or fix its frequency"
            )
    return found
