"""Rounds until the gates are decided, on engines that spin, so that the truth is known."""

from typing import Any

from petra_deploy.core.rounds import log_ratios
from petra_deploy.core.verdict import share, undecided
from petra_deploy.worker.measure import duel
from tests.unit.worker.measure.test_loop import FEEDS, QUIET, Spinner


def openers(new: float, base: float) -> dict[str, Any]:
    return {
        "candidate": lambda seed: Spinner("candidate", new, []),
        "baseline": lambda seed: Spinner("baseline", base, []),
    }


def test_it_ends_as_soon_as_all_gates_are_decided() -> None:
    gates = share(latency=0.05)
    done = duel.duel(openers(900, 300), FEEDS, gates, most_rounds=20, seed=1, seconds=0.05, log=QUIET)
    assert not undecided(gates, done)
    assert len(done) == duel.FEWEST or undecided(gates, done[:-1])
    assert all(ratio > 0 for ratio in log_ratios(done, "1"))


def test_it_ends_undecided_after_the_most_rounds() -> None:
    (gate,) = share(latency=0.0)  # equal engines are never settled at zero but by chance
    done = duel.duel(openers(300, 300), FEEDS, [gate], most_rounds=7, seed=1, seconds=0.03, log=QUIET)
    assert len(done) <= 7
    assert len(done) == 7 or not undecided([gate], done)


def test_engines_change_places_every_ten_calls_of_a_fast_engine() -> None:
    done = duel.duel(openers(400, 400), FEEDS, share(latency=0.5), most_rounds=20, seed=3, seconds=0.1, log=QUIET)
    for one in done:
        calls = one["batches"]["1"]
        runs = calls["order"].count("candidate")
        assert runs >= 6
        assert len(calls["candidate"]["hot_ns"]) / runs >= 10


def test_only_the_batch_sizes_that_are_left_are_measured() -> None:
    gates = (*share(latency=2.0, batches=(1,)), *share(latency=0.0, batches=(4,)))
    done = duel.duel(openers(300, 300), FEEDS, gates, most_rounds=9, seed=2, seconds=0.03, log=QUIET)
    measured = [set(one["batches"]) for one in done]
    assert all(sizes == {"1", "4"} for sizes in measured[: duel.FEWEST])
    assert all("4" in sizes for sizes in measured)
    if len(done) > duel.FEWEST:
        assert measured[-1] == {"4"}
