"""The contract of a metric: its direction holds on a perfect and on a ruined model.

`names` are those of `core/metrics.py`, or "file.py:function" for one of your own. A metric judges what
it can of three situations (class scores and labels; values and targets; outputs and those of the
original) and must refuse the others by an exception.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import metrics
from petra_deploy.core.workload import MetricSpec
from petra_deploy.testing.contracts._contract import Contract

Array = NDArray[Any]
_ROWS, _CLASSES = 60, 4


@dataclass(frozen=True)
class Situation:
    name: str
    perfect: Array
    ruined: Array
    targets: Array


class MetricContract(Contract):
    kind = "metric"

    def test_it_says_what_it_is(self, metric: str) -> None:
        spec, function = metrics.find(metric)
        assert isinstance(spec, MetricSpec)
        assert spec.name == metric
        assert function.__doc__, "a metric says in its docstring what it computes"

    def test_a_perfect_model_is_judged_better_than_a_ruined_one(self, metric: str) -> None:
        sign = 1 if metrics.find(metric)[0].higher_is_better else -1
        for situation in judged(metric):
            perfect = metrics.evaluate(metric, situation.perfect, situation.targets)
            ruined = metrics.evaluate(metric, situation.ruined, situation.targets)
            assert sign * perfect > sign * ruined, f"{situation.name}: perfect {perfect}, ruined {ruined}"

    def test_bounded_means_that_perfect_is_1(self, metric: str) -> None:
        if metrics.find(metric)[0].bounded:
            for situation in judged(metric):
                assert np.isclose(metrics.evaluate(metric, situation.perfect, situation.targets), 1), situation.name

    def test_without_labels_it_takes_the_outputs_of_the_original(self, metric: str) -> None:
        if not metrics.find(metric)[0].needs_labels:
            assert "the original's outputs" in [situation.name for situation in judged(metric)]

    def test_the_order_of_rows_does_not_matter(self, metric: str) -> None:
        order = np.random.default_rng(1).permutation(_ROWS)
        for situation in judged(metric):
            mixed = np.where(np.arange(_ROWS)[:, None] % 3, situation.perfect, situation.ruined)
            value = metrics.evaluate(metric, mixed, situation.targets)
            assert np.isclose(value, metrics.evaluate(metric, mixed[order], situation.targets[order]))

    def test_outputs_and_targets_stay_as_they_are(self, metric: str) -> None:
        for situation in judged(metric):
            outputs, targets = situation.ruined.copy(), situation.targets.copy()
            metrics.evaluate(metric, outputs, targets)
            assert np.array_equal(outputs, situation.ruined)
            assert np.array_equal(targets, situation.targets)


def judged(metric: str) -> Sequence[Situation]:
    """The situations that the metric takes: at least one."""
    taken = []
    for situation in situations():
        try:
            metrics.evaluate(metric, situation.perfect, situation.targets)
        except Exception:  # a user's function refuses in its own way
            continue
        taken.append(situation)
    assert taken, f"{metric} judges neither class scores, nor values, nor outputs of the original"
    return taken


def situations() -> tuple[Situation, ...]:
    generator = np.random.default_rng(0)
    labels = np.arange(_ROWS) % _CLASSES
    scores = (np.eye(_CLASSES)[labels] * 4 + generator.random((_ROWS, _CLASSES))).astype(np.float32)
    wrong = np.roll(scores, 1, axis=1)
    values = generator.standard_normal((_ROWS, 3)).astype(np.float32)
    return (
        Situation("class scores and labels", scores, wrong, labels),
        Situation("values and targets", values, -values, values),
        Situation("the original's outputs", scores, wrong, scores),
    )
