import math
from dataclasses import replace

import numpy as np
import pytest

from petra_deploy.core.outcome import Goal, Outcome
from petra_deploy.driver.search import choose
from petra_deploy.driver.search.drops import Drops
from tests.unit.driver.search import simulation


def scored(drop: float, error: float, divergence: float | None, speedup: float = 10.0) -> Outcome:
    made = simulation.outcome(speedup, drop, error=error)
    assert made.score is not None
    return replace(made, score=replace(made.score, divergence=divergence))


def noisy(seed: int, error: float, candidates: int = 30) -> tuple[list[Outcome], np.ndarray]:
    """Candidates whose drop is ten times their divergence, measured with noise; and the true drops."""
    random = np.random.default_rng(seed)
    far = random.uniform(0.01, 0.2, candidates)
    true = 10 * far + 0.1 * random.normal(size=candidates)
    measured = true + error * random.normal(size=candidates)
    return [scored(m, error, f) for m, f in zip(measured, far, strict=True)], true


@pytest.mark.parametrize("seed", range(5))
def test_together_noisy_drops_are_nearer_to_the_truth(seed):
    outcomes, true = noisy(seed, error=1.0)
    drops = Drops(outcomes)
    estimated = np.array([drops.estimate(o)[0] for o in outcomes])
    measured = np.array([o.score.drop.value for o in outcomes])
    assert np.mean((estimated - true) ** 2) < 0.4 * np.mean((measured - true) ** 2)
    assert all(0 < drops.estimate(o)[1] <= 1.0 for o in outcomes)


def test_what_is_measured_well_stays_as_measured():
    outcomes, _ = noisy(0, error=0.02)
    drops = Drops(outcomes)
    for outcome in outcomes:
        assert drops.estimate(outcome)[0] == pytest.approx(outcome.score.drop.value, abs=0.03)


def test_where_drops_do_not_follow_the_divergence_the_measurement_counts():
    random = np.random.default_rng(1)
    outcomes = [
        scored(d, 0.3, f) for d, f in zip(random.normal(size=40) * 5, random.uniform(0.1, 0.2, 40), strict=True)
    ]
    drops = Drops(outcomes)
    for outcome in outcomes:
        assert drops.estimate(outcome)[0] == pytest.approx(outcome.score.drop.value, abs=0.1)


def test_alone_or_without_a_divergence_the_measurement_is_the_estimate():
    one = scored(2.0, 0.7, 0.1)
    assert Drops([one]).estimate(one) == (2.0, 0.7)
    without = scored(2.0, 0.7, None)
    assert Drops([one, one, without]).estimate(without) == (2.0, 0.7)
    assert Drops([one, one]).estimate(replace(one, score=None)) == (math.inf, 0.0)


def test_a_lucky_candidate_is_not_the_best():
    outcomes, _ = noisy(3, error=0.5)
    lucky = scored(0.2, 0.5, 0.3, speedup=90.0)  # a true drop of about 3
    goal = Goal(max_drop=1.0)
    assert choose.feasible(lucky, goal)
    assert not choose.feasible(lucky, goal, Drops([*outcomes, lucky]))
    assert choose.best([*outcomes, lucky], goal, simulation.SIZE) is not lucky


@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_was_ruined_says_nothing_of_the_others(seed):
    outcomes, _ = noisy(seed, error=0.3)
    goal, ruined = Goal(max_drop=1.0), scored(40.0, 1.5, 1.0)  # four times as steep as the rest, five times as far
    before, after = (Drops([*outcomes, *more]) for more in ([], [ruined]))
    near = [o for o in outcomes if choose.feasible(o, goal, before)]
    assert near
    assert all(after.estimate(o)[0] == pytest.approx(before.estimate(o)[0], abs=0.1) for o in near)
