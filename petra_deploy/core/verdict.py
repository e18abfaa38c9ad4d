"""What comes of each gate of a comparison: a pure function of its record, so a file's verdicts can be repeated.

    gates = share(latency=0.05, batches=(1, 16), drop=0.5)      # three tested gates: alpha / 3 each
    judge(comparison)                                           # its Verdicts

Latency is decided by the anytime-valid test of core/evidence.py on one log ratio a round, new over base. The interval
shown is that test inverted, so that text and verdict cannot disagree, and one may look after every round. A long call
is preempted more often than a short one, so on a shared core the clock is unkind to the slower engine: rounds in which
other programs took the core are judged by processor time, the interval spans the middle of processor time in any case,
and a verdict that it denies is inconclusive. Sizes are counted, and take no part of alpha.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from petra_deploy.core import evidence, stats
from petra_deploy.core import rounds as records
from petra_deploy.core.comparison import Comparison, Decision, Gate, Record, Verdict
from petra_deploy.core.outcome import Figure


def share(
    *, latency: float | None, batches: Sequence[int] = (1,), size: float | None = None, drop: float | None = None,
    alpha: float = stats.ALPHA,
) -> tuple[Gate, ...]:  # fmt: skip
    """The gates whose limit is not None; those that are tested share `alpha` equally (Bonferroni)."""
    tested = (len(batches) if latency is not None else 0) + (drop is not None)
    part = alpha / max(tested, 1)
    found = [Gate(what="latency", limit=latency, batch=b, alpha=part) for b in batches] if latency is not None else []
    if size is not None:
        found.append(Gate(what="size", limit=size, alpha=alpha))
    if drop is not None:
        found.append(Gate(what="metric", limit=drop, alpha=part))
    return tuple(found)


def undecided(gates: Sequence[Gate], rounds: Sequence[Record]) -> tuple[Gate, ...]:
    """The gates on latency on which the rounds so far do not settle."""
    latency = [gate for gate in gates if gate.what == "latency"]
    return tuple(gate for gate in latency if of_latency(gate, rounds).verdict == "inconclusive")


def judge(comparison: Comparison) -> tuple[Verdict, ...]:
    """One verdict a gate, in the gates' order. Raises ValueError where the record lacks what a gate is on."""
    return tuple(_judged(gate, comparison) for gate in comparison.gates)


def of_latency(gate: Gate, rounds: Sequence[Record]) -> Verdict:
    """From the rounds that measured the gate's batch size."""
    batch = str(gate.batch)
    rounds = [one for one in rounds if batch in one["batches"]]
    if not rounds:
        return Verdict(gate=gate, verdict="inconclusive", figure=Figure(value=None, unit="ratio", n=0),
                       why="no round was measured")  # fmt: skip
    (logs, taken), limit = records.fair_log_ratios(rounds, batch), math.log1p(gate.limit)
    middle = statistics.median(logs)
    if len(logs) < stats.FEWEST_ROUNDS:
        figure = Figure(value=math.exp(middle), unit="ratio", n=len(logs), note=f"needs {stats.FEWEST_ROUNDS} rounds")
        return Verdict(gate=gate, verdict="inconclusive", figure=figure, why="too few rounds for a verdict")
    low, high = evidence.interval(logs, alpha=gate.alpha)
    decided = evidence.decide(logs, limit, alpha=gate.alpha)
    verdict: Decision = "inconclusive" if decided == "open" else decided
    why = ""
    note = f"contended: {taken} of {len(logs)} rounds by processor time" if taken else ""
    if (processor := records.processor_ratio(rounds, batch)) is not None:
        low, high = min(low, processor), max(high, processor)
        if (verdict == "fail" and processor <= limit) or (verdict == "pass" and processor >= limit):
            verdict = "inconclusive"
            why = (
                f"the clock says {math.exp(middle):.3f} and processor time {math.exp(processor):.3f}: other programs "
                "took the core; compare again on a quieter machine"
            )
    figure = Figure(value=math.exp(middle), unit="ratio", low=_exp(low), high=_exp(high), n=len(logs), note=note)
    return Verdict(gate=gate, verdict=verdict, figure=figure, why=why or _said(verdict, figure, gate))


def overall(verdicts: Sequence[Verdict]) -> Decision:
    """fail where any gate fails, else inconclusive where any is."""
    found = {verdict.verdict for verdict in verdicts}
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def _judged(gate: Gate, comparison: Comparison) -> Verdict:
    if gate.what == "latency":
        return of_latency(gate, comparison.rounds)
    if gate.what == "size":
        return _size(gate, comparison.base.bytes, comparison.new.bytes)
    if comparison.drop is None:
        raise ValueError("the comparison has a gate on the metric, and no drop")
    return _metric(gate, comparison.drop, comparison.metric)


def _said(verdict: Decision, figure: Figure, gate: Gate) -> str:
    limit, n = f"{gate.limit:.2%}".replace(".00%", "%"), figure.n
    if verdict == "fail":
        return f"slower by more than {limit}, settled after {n} rounds"
    if verdict == "pass":
        return f"not slower by {limit}, settled after {n} rounds"
    return f"{n} rounds do not settle whether it is slower by {limit}: the difference is near it, or rounds scatter"


def _size(gate: Gate, base: int, new: int) -> Verdict:
    ratio = new / max(base, 1)
    verdict: Decision = "fail" if ratio > 1 + gate.limit else "pass"
    return Verdict(gate=gate, verdict=verdict, figure=Figure(value=ratio, unit="ratio", origin="counted"),
                   why=f"{new:,} bytes against {base:,}")  # fmt: skip


def _metric(gate: Gate, drop: Figure, metric: str) -> Verdict:
    """The drop's interval is at 95%: widened to this gate's part of alpha as a normal one would be."""
    value, quantile = drop.known(), statistics.NormalDist().inv_cdf
    wider = max(1.0, quantile(1 - gate.alpha / 2) / quantile(1 - stats.ALPHA / 2))
    low = None if drop.low is None else value - wider * (value - drop.low)
    high = None if drop.high is None else value + wider * (drop.high - value)
    figure = replace(drop, low=low, high=high)
    if low is not None and low > gate.limit:
        return Verdict(
            gate=gate, verdict="fail", figure=figure, why=f"{metric} drops by more than {gate.limit:g} points"
        )
    if high is not None and high <= gate.limit:
        return Verdict(gate=gate, verdict="pass", figure=figure,
                       why=f"{metric} does not drop by {gate.limit:g} points")  # fmt: skip
    why = f"{drop.n} rows do not settle whether {metric} drops by {gate.limit:g} points: give more rows"
    return Verdict(gate=gate, verdict="inconclusive", figure=figure, why=why)


def _exp(log: float) -> float | None:
    return math.exp(log) if math.isfinite(log) else None
