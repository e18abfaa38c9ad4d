from dataclasses import replace

from petra_deploy.core.outcome import Failed, Front, Goal
from petra_deploy.core.strategy import Strategy
from petra_deploy.driver.search import choose
from tests.unit.driver.search.simulation import SIZE, outcome

GOAL = Goal(max_drop=1.0)


def test_a_noisy_drop_needs_a_margin():
    assert choose.feasible(outcome(10, 0.8, error=0.1), GOAL)
    assert not choose.feasible(outcome(10, 0.8, error=0.3), GOAL)


def test_a_candidate_that_is_not_faster_is_never_the_best():
    assert choose.best([outcome(0.9, 0.0), outcome(1.0, 0.0)], GOAL, SIZE) is None


def test_the_best_is_the_fastest_feasible():
    fast, lossy = outcome(10, 0.2), outcome(30, 4.0)
    assert choose.best([outcome(3, 0), fast, lossy], GOAL, SIZE) is fast


def test_size_as_the_objective_chooses_the_smallest():
    small, fast = outcome(2, 0, size=SIZE // 50), outcome(9, 0, size=SIZE // 4)
    assert choose.best([small, fast], Goal(objective="size"), SIZE) is small


def test_of_two_that_are_as_fast_the_smaller_is_the_best():
    large, small = outcome(10.0, 0, size=SIZE // 20), outcome(9.9, 0, size=SIZE // 60)
    assert choose.best([large, small], GOAL, SIZE) is small
    assert choose.best([large, outcome(9.5, 0, size=SIZE // 60)], GOAL, SIZE) is large
    assert choose.value(small, GOAL, SIZE) < choose.value(large, GOAL, SIZE)
    assert choose.finalists([large, small], GOAL, SIZE)[0] is small


def test_of_two_that_are_as_small_the_faster_is_the_best():
    slow, fast = outcome(2, 0, size=SIZE // 50), outcome(9, 0, size=SIZE // 50)
    assert choose.best([slow, fast], Goal(objective="size"), SIZE) is fast


def test_finalists_are_the_fastest_at_growing_margins_fastest_first():
    bold, likely, safe = outcome(30, 0.7, error=0.2), outcome(20, 0.5, error=0.2), outcome(10, 0.1, error=0.2)
    lossy = outcome(90, 3.0, error=0.2)
    assert choose.finalists([safe, lossy, likely, bold], GOAL, SIZE) == (bold, likely, safe)


def test_without_a_feasible_one_the_nearest_is_the_finalist():
    near, far = outcome(5, 2.0), outcome(9, 8.0)
    assert choose.finalists([far, near], GOAL, SIZE) == (near,)


def test_the_front_keeps_only_what_nothing_beats():
    front = choose.pareto([outcome(10, 1.0), outcome(9, 2.0), outcome(5, 0.1)], GOAL, SIZE)
    assert [o.measurement.speedup.value for o in front] == [10, 5]


def test_the_value_told_gets_worse_with_the_drop_and_better_with_speed():
    def value(speedup: float, drop: float) -> float:
        return choose.value(outcome(speedup, drop), GOAL, SIZE)

    assert value(20, 0.2) < value(10, 0.2) < value(10, 1.5) < value(10, 5.0)
    assert value(5, 0.0) < value(12, 3.0)


def test_the_front_follows_the_finalists_without_repeating_them():
    def at(speedup, drop, seed):
        return outcome(speedup, drop, strategy=Strategy(seed=seed))

    fast, middle, slow = at(20, 2.0, 1), at(10, 0.5, 2), at(5, 0.1, 3)
    front = choose.with_front(Front(outcomes=(middle,), best=0), [slow, middle, fast], GOAL, SIZE)
    assert front.outcomes == (middle, fast, slow)
    assert front.chosen is middle


def test_better_for_sure_means_the_whole_interval_of_a_measured_speedup():
    barely = outcome(1.05, 0.0)
    assert barely.measurement
    bounded = replace(barely.measurement, speedups=(replace(barely.measurement.speedups[0], low=0.99, high=1.1),))
    assert not choose.better(replace(barely, measurement=bounded), GOAL, SIZE)
    above = replace(bounded, speedups=(replace(bounded.speedups[0], low=1.01),))
    assert choose.better(replace(barely, measurement=above), GOAL, SIZE)
    predicted = replace(bounded, speedups=(replace(bounded.speedups[0], origin="predicted"),))
    assert choose.better(replace(barely, measurement=predicted), GOAL, SIZE)
    assert choose.better(replace(barely, measurement=bounded), Goal(objective="size"), SIZE)


def test_why_there_is_no_candidate_is_told_apart_from_candidates_that_failed():
    assert "none of the techniques applies" in choose.no_candidate((), offered=False)
    assert "--time" in choose.no_candidate((), offered=True)
    broken = replace(outcome(2.0, 0.0), failed=Failed(job="transform", kind="mismatch", reason="outputs differ"))
    assert "all 2 candidates failed" in choose.no_candidate((broken, broken), offered=True)
    assert "outputs differ" in choose.no_candidate((broken, broken), offered=True)
    assert choose.no_candidate((broken, outcome(0.9, 0.0)), offered=True) == ""
