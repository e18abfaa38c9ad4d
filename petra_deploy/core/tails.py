"""From the recorded rounds of a scenario to its figures: a pure function, so a profile proves itself.

    scenario = scenario_of("server", 1, 1, {"limit_ms": 10.0}, rounds)
    again(profile.measured) == profile.measured         # every figure, made anew from the file's own rounds

What a round holds is in docs/profiles.md. Calls of a single stream count as independent, as the samples of MLPerf's
load generator do; queries of a server wait for one another, and their bounds say so (`stats.dependent_percentile`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import stats
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import Benched, ColdStart, Record, Scenario, ScenarioName, Tail

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
CONFIRM = "confirm"  # the phase of a server's rounds that its figures are made of
_APART = 1.10
_IDLE = "of the whole package or card, what it uses idle included"


def scenario_of(
    name: ScenarioName, batch: int, threads: int, settings: dict[str, object], rounds: Sequence[Record]
) -> Scenario:
    """A scenario with the figures that follow from its rounds."""
    bare = Scenario(name=name, batch=batch, threads=threads, settings=settings, rounds=tuple(rounds))
    figures = {"offline": _offline, "server": _server}.get(name, _streamed)
    return replace(figures(bare), energy=_energy(rounds))


def again(benched: Benched) -> Benched:
    """The same measurement, every figure made anew from its raw rounds and starts."""
    made = tuple(scenario_of(s.name, s.batch, s.threads, s.settings, s.rounds) for s in benched.scenarios)
    starts = benched.sittings[0].get("starts") if benched.sittings else None
    return replace(benched, scenarios=made, cold=cold(starts or ()), peak_memory=peak(starts or ()))


def cold(starts: Sequence[Record]) -> ColdStart | None:
    """Of new processes that opened the engine and answered once."""
    if not starts:
        return None

    def over(key: str) -> Figure:
        figure = stats.spread([one[key] / 1e6 for one in starts], "ms")
        return replace(figure, note="; ".join(filter(None, [figure.note, starts[0]["note"]])))

    return ColdStart(total=over("total_ns"), load=over("open_ns"), first=over("first_ns"))


def peak(starts: Sequence[Record]) -> Figure | None:
    """The most resident bytes of the same processes, after a few calls."""
    if not starts:
        return None
    return Figure(value=float(max(one["peak_bytes"] for one in starts)), unit="bytes", n=len(starts),
                  note=starts[0]["note"])  # fmt: skip


def kept(rounds: Sequence[Record], limit_ms: float) -> bool:
    """Whether p99 of these queries lies under the limit, by its upper bound."""
    high = stats.dependent_percentile(_latencies(rounds), 0.99, "ms").high
    return high is not None and high <= limit_ms


def beyond(rounds: Sequence[Record], limit_ms: float) -> bool:
    """Whether p99 of these queries, as it was seen, lies over the limit."""
    return float(np.quantile(np.concatenate(_latencies(rounds)), 0.99)) > limit_ms


def undecided(rounds: Sequence[Record], limit_ms: float) -> bool:
    """Whether these queries are worth too few to bound p99, which as seen keeps the limit."""
    return stats.dependent_percentile(_latencies(rounds), 0.99, "ms").high is None and not beyond(rounds, limit_ms)


def noise(scenarios: Sequence[Scenario]) -> tuple[str, ...]:
    """What the rounds of streams say against their own figures, as sentences that say what to do."""
    found = []
    for one in scenarios:
        if one.name not in ("single-stream", "multi-stream"):
            continue
        where = f"{one.name}, batch {one.batch}, {one.threads} thread{'s' if one.threads > 1 else ''}"
        wall, cpu = (
            float(np.median(np.concatenate([r["engine"][k] for r in one.rounds]))) for k in ("hot_ns", "cpu_ns")
        )
        if one.threads == 1 and cpu > 0 and wall > _APART * cpu:
            found.append(
                f"{where}: a call takes {wall / 1e6:.3g} ms by the clock and {cpu / 1e6:.3g} ms of processor time: "
                "other programs took the core; measure again on a quiet machine"
            )
        middles = [float(np.median(r["yardstick"]["hot_ns"])) for r in one.rounds]
        if max(middles) > _APART * min(middles):
            found.append(
                f"{where}: the machine's own speed moved by {max(middles) / min(middles) - 1:.0%} between rounds, by "
                "the yardstick: stop other programs, fix the processor's frequency, and measure again"
            )
    return tuple(found)


def _streamed(bare: Scenario) -> Scenario:
    """A single stream or several: the next query is sent when the last is done."""
    hot = [_ms(one["engine"]["hot_ns"]) for one in bare.rounds]
    pooled, p50 = np.concatenate(hot), stats.median(hot, "ms")
    tails = {name: stats.percentile(pooled, q, "ms") for name, q in QUANTILES.items() if name != "p50"}
    first = stats.median([_ms(one["engine"]["first_ns"]) for one in bare.rounds], "ms")
    latency = Tail(p50=p50, **tails, first=first)
    return replace(bare, latency=latency, throughput=stats.rate(p50, bare.batch))


def _offline(bare: Scenario) -> Scenario:
    """Rows per second over rounds; a t-interval of their logarithm, since a round is a session."""
    rates = [math.log(one["rows"] / (one["elapsed_ns"] / 1e9)) for one in bare.rounds]
    value = math.exp(sum(rates) / len(rates))
    if len(rates) == 1:
        figure = Figure(value=value, unit="1/s", n=1, note="one round: no interval")
    else:
        low, high = map(math.exp, stats.t_interval(rates))
        figure = Figure(value=value, unit="1/s", low=low, high=high, n=len(rates), note="a t-interval over rounds")
    return replace(bare, throughput=figure)


def _server(bare: Scenario) -> Scenario:
    """The highest rate that was confirmed, and its latencies; those of the lowest tried where none was."""
    limit = bare.settings["limit_ms"]
    if not isinstance(limit, int | float):
        raise ValueError("a server scenario has no limit_ms")
    confirmed: dict[float, list[Record]] = {}
    for one in bare.rounds:
        if one["phase"] == CONFIRM:
            confirmed.setdefault(one["rate"], []).append(one)
    held = max((rate for rate, group in confirmed.items() if kept(group, limit)), default=None)
    shown = confirmed.get(min(confirmed) if held is None else held) if confirmed else None
    if shown is None:
        return replace(
            bare, throughput=Figure(value=None, unit="1/s", n=0, note=f"no rate kept p99 under {limit:.4g} ms")
        )
    sequences = _latencies(shown)
    latency = Tail(**{name: stats.dependent_percentile(sequences, q, "ms") for name, q in QUANTILES.items()})
    return replace(bare, latency=latency, throughput=_highest(bare.rounds, held, shown, limit))


def _highest(rounds: Sequence[Record], held: float | None, shown: Sequence[Record], limit: float) -> Figure:
    n = sum(len(one["latency_ns"]) for one in shown)
    if held is None:
        p99 = stats.dependent_percentile(_latencies(shown), 0.99, "ms")
        at = f"at {shown[0]['rate']:.3g}/s"
        if undecided(shown, limit):
            note = f"{p99.note}, to say whether p99 keeps {limit:.4g} ms {at}"
        else:
            seen = "is more" if p99.high is None else f"may be {p99.high:.3g} ms"
            note = f"no rate tried kept p99 under {limit:.4g} ms: {at} it {seen}"
        return Figure(value=None, unit="1/s", n=n, note=note)
    worse = [one["rate"] for one in rounds if one["rate"] > held and beyond([one], limit)]
    note = f"the highest rate tried whose p99 kept {limit:.4g} ms"
    if not worse:
        return Figure(value=held, unit="1/s", n=n, note=note)
    return Figure(value=held, unit="1/s", low=held, high=min(worse), n=n, note=f"{note}; the high one did not")


def _energy(rounds: Sequence[Record]) -> Figure | None:
    """Joules a row, of the rounds that hold an `energy`."""
    found = [one["energy"] for one in rounds if one.get("energy")]
    if not found:
        return None
    figure = stats.spread([one["joules"] / one["rows"] for one in found], "J")
    return replace(figure, note=f"{_IDLE}; {figure.note}")


def _latencies(rounds: Sequence[Record]) -> list[NDArray[np.float64]]:
    return [_ms(one["latency_ns"]) for one in rounds]


def _ms(nanoseconds: Sequence[int]) -> NDArray[np.float64]:
    return np.asarray(nanoseconds, dtype=np.float64) / 1e6
