"""Each rule of core/advice.py, and their order."""

from dataclasses import replace

import pytest

from petra_deploy.core.advice import Judged, Standing, Trial, advise, holds
from petra_deploy.core.comparison import Decision, Gate, Verdict
from petra_deploy.core.outcome import Figure

VERSION = "onnxruntime 1.99.0"


def latency(verdict: Decision, value: float, low: float, high: float) -> Verdict:
    figure = Figure(value=value, unit="ratio", low=low, high=high, n=8)
    return Verdict(gate=Gate(what="latency", limit=0.02), verdict=verdict, figure=figure, why="not slower by 2%")


def points(value: float, low: float, high: float) -> Figure:
    return Figure(value=value, unit="points", low=low, high=high, n=500)


JUDGED = Judged(metric="accuracy", rows="test", n=500, installed=0.98, tried=0.98, drop=points(0, -0.5, 0.5),
                below_original=points(0.4, -0.1, 0.9), max_drop=1.0)  # fmt: skip
STANDING = Standing(speedup=Figure(value=4.0, unit="ratio", low=3.9, high=4.1, n=7), promised=4.1)
GOOD = Trial(latency=latency("pass", 1.0, 0.99, 1.01), judged=JUDGED, standing=STANDING)
SLOWER = latency("fail", 1.2, 1.1, 1.3)
DWINDLED = replace(STANDING, speedup=Figure(value=2.0, unit="ratio", low=1.9, high=2.1, n=7))
WORSE = replace(JUDGED, drop=points(0.8, 0.2, 1.4), below_original=points(0.9, 0.3, 1.5))
TOO_LOW = replace(JUDGED, drop=points(3, 2, 4), below_original=points(3.4, 2.4, 4.4))


@pytest.mark.parametrize(
    ("trial", "advice", "said"),
    [
        (GOOD, "upgrade", "not slower by 2%"),
        (replace(GOOD, latency=latency("pass", 0.9, 0.88, 0.92)), "upgrade", "faster"),
        (replace(GOOD, standing=None), "upgrade", "not slower"),
        (replace(GOOD, latency=SLOWER), "keep", "1.200 [1.100, 1.300] times as long"),
        (replace(GOOD, latency=latency("inconclusive", 1.02, 0.98, 1.06)), "keep", "nothing speaks for"),
        (replace(GOOD, judged=WORSE), "keep", "accuracy is worse"),
        (replace(GOOD, judged=TOO_LOW), "search again", "3.40 points below the original"),
        (replace(GOOD, judged=replace(TOO_LOW, below_original=None)), "search again", "3.00 points"),
        (replace(GOOD, standing=DWINDLED), "search again", "where 4.10x was promised"),
        (Trial(broken="quantize_ort: no kernel"), "search again", "does not work with onnxruntime 1.99.0"),
    ],
)
def test_each_rule_says_what_it_goes_by(trial: Trial, advice: str, said: str) -> None:
    found, why = advise(trial, VERSION)
    assert found == advice
    assert said in why
    assert VERSION in why


def test_a_slower_version_is_not_searched_for_though_the_speedup_has_gone() -> None:
    assert advise(replace(GOOD, latency=SLOWER, standing=DWINDLED), VERSION)[0] == "keep"


def test_a_metric_that_left_its_limit_comes_before_being_slower() -> None:
    assert advise(replace(GOOD, latency=SLOWER, judged=TOO_LOW), VERSION)[0] == "search again"


def test_made_up_rows_say_nothing_of_the_task() -> None:
    assert advise(replace(GOOD, judged=replace(TOO_LOW, rows="made-up")), VERSION)[0] == "upgrade"


def test_other_answers_are_not_worse_ones_where_agreement_is_the_metric() -> None:
    assert advise(replace(GOOD, judged=replace(WORSE, metric="agreement")), VERSION)[0] == "upgrade"
    assert advise(replace(GOOD, judged=replace(TOO_LOW, metric="agreement")), VERSION)[0] == "search again"


@pytest.mark.parametrize(
    ("value", "low", "high", "promised", "expected"),
    [
        (4.0, 3.9, 4.1, 4.2, True),
        (3.0, 2.9, 3.1, 4.2, False),  # far below, and surely so
        (3.0, 1.5, 4.5, 4.2, True),  # far below, and not surely
        (0.99, 0.88, 1.13, 1.11, True),  # nothing is sure
        (0.9, 0.8, 0.95, 0.0, False),  # surely none
        (1.1, 1.05, 1.15, 0.0, True),  # nothing was promised
    ],
)
def test_a_promise_holds(value: float, low: float, high: float, promised: float, expected: bool) -> None:
    assert holds(Figure(value=value, unit="ratio", low=low, high=high, n=7), promised) is expected
