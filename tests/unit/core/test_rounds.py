import math
from typing import Any

import numpy as np
import pytest

from petra_deploy.core.rounds import drift, fair_log_ratios, figures, log_ratios


def make_rounds(n: int, candidate_us: float, baseline_us: float, *, cpu: float = 1.0, slope: float = 0.0) -> list[Any]:
    """Rounds of 200 hot calls; `cpu` is the candidate's processor time a clock second."""
    generator = np.random.default_rng(0)

    def side(microseconds: float, share: float) -> dict[str, list[int]]:
        calls = microseconds * 1e3 * (1 + slope * np.linspace(0, 1, 200)) * generator.uniform(0.99, 1.01, 200)
        return {
            "hot_ns": calls.astype(int).tolist(),
            "cpu_ns": (calls * share).astype(int).tolist(),
            "first_ns": [int(1500 * microseconds)] * 20,
        }

    return [
        {
            "seed": k, "threads": 1, "opened": ["candidate", "baseline"],
            "load_ns": {"candidate": 2_000_000 + k, "baseline": 9},
            "batches": {"1": {"candidate": side(candidate_us, cpu), "baseline": side(baseline_us, 1.0), "order": []}},
        }
        for k in range(n)
    ]  # fmt: skip


def test_the_speedup_is_the_baselines_median_over_the_candidates() -> None:
    found = figures(make_rounds(5, 100, 2000))
    (speedup,) = found.speedups
    assert speedup.known() == pytest.approx(20, rel=0.01)
    assert speedup.low is not None
    assert speedup.low < 20 < (speedup.high or 0)
    assert speedup.n == 5
    assert found.candidate[0].p50.known() == pytest.approx(0.1, rel=0.01)
    assert found.candidate[0].p99.value is not None
    assert found.candidate[0].first.known() == pytest.approx(0.15)
    assert found.load.known() == pytest.approx(2.0)
    assert found.warnings == ()


def test_two_rounds_of_200_calls_have_no_p99() -> None:
    assert figures(make_rounds(2, 100, 100)).candidate[0].p99.note == "needs 459"


def test_outliers_stay_and_move_no_median() -> None:
    rounds = make_rounds(4, 100, 100)
    rounds[0]["batches"]["1"]["candidate"]["hot_ns"][:40] = [10**8] * 40
    found = figures(rounds)
    assert found.speedups[0].known() == pytest.approx(1.0, abs=0.02)
    assert found.candidate[0].p99.known() == pytest.approx(100.0)


def test_a_clock_that_disagrees_with_processor_time_is_said() -> None:
    found = figures(make_rounds(4, 100, 100, cpu=0.5))
    assert "other programs took the core" in found.warnings[0]
    assert found.speedups[0].known() == pytest.approx(1.0, rel=0.01)
    assert found.speedups[0].high == pytest.approx(2.0, rel=0.01)  # the interval hides neither
    assert "contended" in found.speedups[0].note
    assert log_ratios(make_rounds(3, 100, 100, cpu=0.5), "1", "cpu_ns")[0] == pytest.approx(math.log(0.5), abs=0.01)


def test_a_drift_in_every_round_is_recorded_and_said() -> None:
    rounds = make_rounds(4, 100, 100, slope=0.3)
    assert drift(rounds)["candidate"][0]["ratio"] > 1.1
    assert drift(rounds)["candidate"][0]["p"] < 1e-6
    assert any("drifted" in warning for warning in figures(rounds).warnings)


def test_with_several_threads_processor_time_is_no_measure_of_contention() -> None:
    rounds = [{**one, "threads": 2} for one in make_rounds(4, 100, 100, cpu=3.0)]
    assert figures(rounds).warnings == ()


def test_a_machine_that_is_slow_for_part_of_a_round_does_not_move_the_ratio_of_pairs() -> None:
    """Eleven pairs of runs, six of them at half speed; one run of the candidate falls on the change."""
    base = [1_000_000] * 5 + [2_000_000] * 6
    new = [1_080_000] * 4 + [2_160_000] * 7  # the fifth was slow already: medians of all calls say 2.16
    calls = {}
    for side, runs in (("baseline", base), ("candidate", new)):
        every = [time for time in runs for _ in range(10)]
        calls[side] = {"first_ns": runs, "hot_ns": every, "cpu_ns": every}
    (ratio,), taken = fair_log_ratios([{"threads": 1, "batches": {"1": calls}}], "1")
    assert taken == 0
    assert math.exp(ratio) == pytest.approx(1.08)


def test_rounds_of_several_threads_or_of_a_device_are_judged_by_the_clock() -> None:
    slow = {"first_ns": [1], "hot_ns": [2_000_000] * 5, "cpu_ns": [1_000_000] * 5}
    calls = {"baseline": {**slow, "hot_ns": [1_000_000] * 5}, "candidate": slow}
    for threads, ratio, count in ((1, 1.0, 1), (2, 2.0, 0), (0, 2.0, 0)):
        found, taken = fair_log_ratios([{"threads": threads, "batches": {"1": calls}}], "1")
        assert (math.exp(found[0]), taken) == (pytest.approx(ratio), count)
