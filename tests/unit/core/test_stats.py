import math
import statistics

import numpy as np
import pytest

from petra_deploy.core import stats


def test_p99_of_458_samples_is_no_number_and_says_how_many_it_needs() -> None:
    figure = stats.percentile(np.arange(458.0), 0.99, "ms")
    assert (figure.value, figure.low, figure.high) == (None, None, None)
    assert figure.note == "needs 459"
    assert stats.percentile(np.arange(459.0), 0.99, "ms").high == 458.0


def test_p90_needs_44_and_a_median_keeps_its_value_below_six() -> None:
    assert stats.samples_needed(0.9) == 44
    few = stats.percentile([3.0, 1.0, 2.0], 0.5, "ms")
    assert (few.value, few.low, few.note) == (2.0, None, "needs 6")


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.5, 200), (0.9, 60), (0.99, 700)])
def test_the_bounds_of_a_quantile_hold_it_in_at_least_95_of_100_cases(q: float, n: int) -> None:
    generator = np.random.default_rng(0)
    truth = -math.log(1 - q)
    held = 0
    for _ in range(1500):
        figure = stats.percentile(generator.exponential(size=n), q, "ms")
        assert figure.low is not None
        assert figure.high is not None
        held += figure.low <= truth <= figure.high
    assert held / 1500 >= 0.94


def test_the_median_of_rounds_spans_what_each_round_says() -> None:
    figure = stats.median([np.full(100, 1.0), np.full(100, 1.1), np.full(100, 0.9)], "ms")
    assert (figure.value, figure.low, figure.high) == (1.0, 0.9, 1.1)


def test_throughput_is_the_latency_turned_over_bounds_and_all() -> None:
    latency = stats.percentile(np.linspace(1.0, 3.0, 201), 0.5, "ms")
    rate = stats.rate(latency, 16)
    assert rate.known() == pytest.approx(8000)
    assert rate.low == pytest.approx(16e3 / latency.high)
    assert rate.high == pytest.approx(16e3 / latency.low)


def test_students_distribution_is_that_of_the_tables() -> None:
    assert stats.t_cdf(0.0, 3) == 0.5
    assert stats.t_cdf(1.0, 1) == pytest.approx(0.75)
    assert stats.t_cdf(-2.0, 2) == pytest.approx(1 - stats.t_cdf(2.0, 2))
    for dof, table in ((1, 12.7062), (2, 4.3027), (8, 2.3060), (29, 2.0452), (5000, 1.9604)):
        assert stats.t_quantile(0.975, dof) == pytest.approx(table, abs=1e-4)


def test_a_plain_t_test_at_every_look_would_have_raised_many_more() -> None:
    generator = np.random.default_rng(4)
    alarms = 0
    for _ in range(300):
        ratios = list(0.012 * generator.standard_normal(20))
        alarms += any(stats.t_interval(ratios[:n])[0] > 0 for n in range(4, 21))
    assert alarms / 300 > 0.06


def test_speedup_is_baseline_over_candidate_and_says_when_it_only_races() -> None:
    figure = stats.speedup([math.log(1 / 20)] * 5)
    assert figure.known() == pytest.approx(20)
    assert figure.low is not None
    assert figure.low < 20 < (figure.high or 0)
    assert figure.note == ""
    assert "racing" in stats.speedup([-1.0, -1.1, -1.05]).note
    assert stats.speedup([-1.0]).low is None


def test_the_sign_test_sees_a_drift_and_no_drift_in_equal_values() -> None:
    calls = np.linspace(1, 2, 90)
    assert stats.sign_test(calls[:30], calls[-30:]) < 1e-6
    assert stats.sign_test(np.ones(30), np.ones(30)) == 1.0


def autoregressive(phi: float, n: int, random: np.random.Generator) -> np.ndarray:
    """Standard normal values, each correlated by `phi` with the one before it."""
    pushes, values, last = random.standard_normal(n) * math.sqrt(1 - phi * phi), np.empty(n), random.standard_normal()
    for index, push in enumerate(pushes):
        values[index] = last = phi * last + push
    return values


@pytest.mark.parametrize(("phi", "size"), [(0.0, 400), (0.5, 400), (0.9, 800), (0.97, 800)])
def test_bounds_of_dependent_samples_rarely_miss_and_those_for_independent_ones_often_do(phi: float, size: int) -> None:
    """Nominally 2%; where samples are worth too few there is no bound, never a wrong one more than now and then."""
    random, truth, cases = np.random.default_rng(7), statistics.NormalDist().inv_cdf(0.99), 120
    wrong = naive = 0
    for _ in range(cases):
        rounds = [autoregressive(phi, size, random) for _ in range(5)]
        figure, plain = (
            stats.dependent_percentile(rounds, 0.99, "ms"),
            stats.percentile(np.concatenate(rounds), 0.99, ""),
        )
        wrong += figure.low is not None and not figure.low <= truth <= figure.high  # type: ignore[operator]
        naive += not plain.low <= truth <= plain.high  # type: ignore[operator]
    assert wrong <= 0.05 * cases
    assert phi < 0.9 or naive > 0.2 * cases


def test_samples_that_depend_on_one_another_are_worth_fewer() -> None:
    random = np.random.default_rng(0)
    worth = [stats.effective_size([autoregressive(phi, 5000, random)], 2.0) for phi in (0.0, 0.5, 0.9)]
    assert worth == sorted(worth, reverse=True)
    assert worth[0] > 3500
    assert worth[2] < 2000
    short = stats.dependent_percentile([autoregressive(0.97, 600, random)], 0.99, "ms")
    assert short.value is None
    assert "needs 459 that are independent; these 600 are worth" in short.note
