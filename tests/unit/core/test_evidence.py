"""The gate's test: valid however often one looks, sharp, and not taken in by a wild round."""

import math

import numpy as np
import pytest

from petra_deploy.core import evidence


def test_looking_after_every_round_raises_a_false_alarm_in_at_most_one_of_forty_runs() -> None:
    generator = np.random.default_rng(3)
    runs, alarms, missed = 600, 0, 0
    for _ in range(runs):
        ratios = list(0.05 + 0.012 * generator.standard_normal(20))
        looks = [evidence.decide(ratios[:n], 0.05) for n in range(4, 21)]
        alarms += "fail" in looks
        missed += any(look != "open" for look in looks)
    assert alarms / runs <= 0.025 + 3 * math.sqrt(0.025 / runs)
    assert missed / runs <= 0.05 + 3 * math.sqrt(0.05 / runs)


def test_an_eight_percent_slowdown_fails_a_five_percent_gate_within_twenty_rounds() -> None:
    generator = np.random.default_rng(5)
    ratios = list(math.log(1.08) + 0.012 * generator.standard_normal(20))
    assert evidence.decide(ratios, math.log(1.05)) == "fail"
    assert evidence.decide([-x for x in ratios], math.log(1.05)) == "pass"
    assert evidence.decide(ratios[:3], math.log(1.05)) == "open"


@pytest.mark.parametrize("rounds", [4, 5, 9, 20])
def test_the_interval_shown_and_the_verdict_cannot_disagree(rounds: int) -> None:
    generator = np.random.default_rng(6)
    ratios = list(-3 + 0.02 * generator.standard_normal(rounds))
    low, high = evidence.interval(ratios)
    assert low < -3 < high
    assert evidence.decide(ratios, low - 1e-6) == "fail"
    assert evidence.decide(ratios, low + 1e-6) == "open"
    assert evidence.decide(ratios, high - 1e-6) == "open"
    assert evidence.decide(ratios, high + 1e-6) == "pass"


@pytest.mark.parametrize(("n", "above"), [(4, 4), (9, 9), (10, 7), (20, 0), (20, 13)])
def test_the_evidence_of_signs_is_the_integral_over_coins(n: int, above: int) -> None:
    p = np.linspace(0.5, 1, 200_001)
    mixed = np.trapezoid(2 * (2 * p) ** above * (2 * (1 - p)) ** (n - above), p)
    assert evidence.sign_e_value(above, n) == pytest.approx(float(mixed), rel=1e-6)


def test_the_evidence_of_signs_averages_to_one_under_a_fair_coin() -> None:
    n = 12
    mean = sum(math.comb(n, k) / 2**n * evidence.sign_e_value(k, n) for k in range(n + 1))
    assert mean == pytest.approx(1.0)


def test_one_wild_round_does_not_hide_a_slowdown() -> None:
    generator = np.random.default_rng(8)
    ratios = list(math.log(1.08) + 0.006 * generator.standard_normal(14))
    ratios[2] = math.log(1.6)
    assert evidence.decide(ratios, math.log(1.05)) == "fail"
    ratios[2] = math.log(0.7)
    assert evidence.decide(ratios, math.log(1.05)) == "fail"


def test_with_wild_rounds_too_looking_early_raises_few_false_alarms() -> None:
    generator = np.random.default_rng(9)
    runs, alarms = 400, 0
    for _ in range(runs):
        ratios = 0.05 + 0.01 * generator.standard_normal(20) + 0.1 * generator.standard_normal(20) * (
            generator.random(20) < 0.1
        )  # fmt: skip
        alarms += any(evidence.decide(list(ratios[:n]), 0.05) == "fail" for n in range(4, 21))
    assert alarms / runs <= 0.025 + 3 * math.sqrt(0.025 / runs)
