"""The server of MLPerf's load generator: queries arrive by chance, and p99 has to keep a limit.

    rounds = highest_rate(opener, feeds, effort, limit_ms=10.0)         # core/tails.py says which rate it was
    one = open_loop(engine, feeds, rate=100.0, queries=500, seed=1)

Queries of one row come at times drawn beforehand (exponential gaps), however long the engine takes, and are answered
in order by one engine. A query's latency runs from when it was *due*: one that came while another was served has
waited, and a generator that counts from when it could send it hides exactly that ("coordinated omission", Tene,
"How NOT to measure latency", 2013). As the engine answers one at a time, one thread that serves and waits is all of
it: what is due while a call runs is taken up when the call ends, with its full delay.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from petra_deploy.core import stats, tails
from petra_deploy.core.extension import Runner
from petra_deploy.worker.measure.scenarios import (
    Effort,
    Feeds,
    Opener,
    Record,
    longest_stop,
    opened,
    uninterrupted,
    warm,
)

FIRST_SHARE = 0.6  # of what the engine could serve without a pause: the first rate tried
CLOSE = 1.06  # the search ends where the rate that kept the limit and the one that did not are this near
LESS, TIMES_LESS = 0.25, 2  # of a rate that does not keep the limit, until one does
QUERIES = stats.samples_needed(0.99)  # of a confirming round, where time permits
SHORT_QUERIES = 150  # of a try
PATIENCE = 3.0  # times `effort.seconds` that a round may take for them
STEP = 0.88  # down, where a rate is not confirmed
SEARCH, ALL = 2.0, 7.0  # times all rounds of `effort.seconds`: after that no new try begins, and no new step down
_SPIN_NS = 300_000  # the last of a wait, since sleep comes back late


def highest_rate(opener: Opener, feeds: Sequence[Feeds], effort: Effort, limit_ms: float) -> list[Record]:
    """Every try, in order: short ones that bracket and bisect, then rounds of fresh sessions that confirm.

    It takes about `ALL * effort.rounds * effort.seconds`. While there is time, a rate of which the rounds say too
    little gets as many again, and one that does not keep the limit is followed by a lower one. Where none kept it
    in a short try, the first is confirmed: by how much it does not.

    {"phase": "search" or "confirm", "rate", "seed", "load_ns", "due_ns", "latency_ns", "service_ns"} each.
    """
    seeds = iter(range(effort.seed * 10_007, effort.seed * 10_007 + 10_000))
    tries: list[Record] = []
    started = time.monotonic()

    def past(times: float) -> bool:
        return time.monotonic() - started > times * effort.rounds * effort.seconds

    engine, load = opened(opener, next(seeds))
    with engine:
        capacity = 1.0 / warm(engine, feeds)

        def keeps(rate: float) -> bool:
            """By a short try, and another where that one fails: one burst of noise shall not decide."""
            queries = _queries(rate, effort, SHORT_QUERIES)
            for _ in range(2):
                record = uninterrupted(lambda seed: _timed(engine, feeds, rate, queries, seed), next(seeds), effort.log)
                tries.append({"phase": "search", **record, "load_ns": load})
                if not tails.beyond([record], limit_ms):
                    return True
            return False

        rate, kept = _bisect(keeps, capacity, lambda: past(SEARCH))
    confirmed: list[Record] = []  # at this rate
    while True:
        new = _confirm(opener, feeds, rate, effort, limit_ms, seeds)
        tries, confirmed = tries + new, confirmed + new
        if not kept or past(ALL) or tails.kept(confirmed, limit_ms):
            return tries
        if not tails.undecided(confirmed, limit_ms):
            rate, confirmed = STEP * rate, []


def open_loop(engine: Runner, feeds: Sequence[Feeds], *, rate: float, queries: int, seed: int) -> Record:
    """`queries` arrivals at `rate` a second: when each was due, how long it took from then, and the call alone."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1e9 / rate, queries)).astype(np.int64).tolist()
    clock, latency, service = time.perf_counter_ns, list[int](), list[int]()
    began = clock()
    for number, offset in enumerate(due):
        at = began + offset
        while (left := at - clock()) > 0:
            if left > 2 * _SPIN_NS:
                time.sleep((left - _SPIN_NS) / 1e9)
        start = clock()
        engine.run(feeds[number % len(feeds)])
        end = clock()
        latency.append(end - at)
        service.append(end - start)
    return {"rate": rate, "seed": seed, "due_ns": due, "latency_ns": latency, "service_ns": service}


def _bisect(keeps: Callable[[float], bool], capacity: float, late: Callable[[], bool]) -> tuple[float, bool]:
    """A rate that kept the limit in a short try, near one that did not; False and the first tried where none did."""
    low, high = FIRST_SHARE * capacity, capacity  # at its capacity a queue grows without end
    less = 0
    while not keeps(low):
        if less == TIMES_LESS or late():
            return FIRST_SHARE * capacity, False
        low, high, less = LESS * low, low, less + 1
    while high / low > CLOSE and not late():
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low, True


def _confirm(
    opener: Opener, feeds: Sequence[Feeds], rate: float, effort: Effort, limit_ms: float, seeds: Iterator[int]
) -> list[Record]:
    """Rounds at `rate`, ended early where it is hopeless."""
    queries, done = _queries(rate, effort, QUERIES), list[Record]()
    for _ in range(effort.rounds):

        def one(seed: int) -> tuple[Record, float]:
            engine, load = opened(opener, seed)
            with engine:
                warm(engine, feeds)
                record, still = _timed(engine, feeds, rate, queries, seed)
            return {"phase": tails.CONFIRM, **record, "load_ns": load}, still

        done.append(uninterrupted(one, next(seeds), effort.log))
        if len(done) > 1 and tails.beyond(done, limit_ms):
            break
    return done


def _timed(engine: Runner, feeds: Sequence[Feeds], rate: float, queries: int, seed: int) -> tuple[Record, float]:
    """An open loop, and the longest that its process stood still."""
    record = open_loop(engine, feeds, rate=rate, queries=queries, seed=seed)
    return record, longest_stop(record["service_ns"])


def _queries(rate: float, effort: Effort, wanted: int) -> int:
    """What fits the round's seconds, or `wanted` where that fits a few times as many."""
    return max(10, round(effort.seconds * rate), min(wanted, round(PATIENCE * effort.seconds * rate)))
