from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import metrics
from petra_deploy.core.drop import paired_drop

SPECS = metrics.SPECS


def scores(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.eye(10)[np.where(right, labels, (labels + 1) % 10)]


def test_a_point_is_a_hundredth_of_a_bounded_metric_and_more_is_worse() -> None:
    labels = np.arange(200) % 10
    before, after = scores(labels, np.arange(200) >= 4), scores(labels, np.arange(200) >= 10)
    drop, error = paired_drop(SPECS["accuracy"], before, after, labels)
    assert drop.known() == pytest.approx(3.0)
    assert drop.unit == "points"
    assert drop.low is not None
    assert drop.high is not None
    assert drop.low < 3.0 < drop.high
    assert error > 0
    gain, _ = paired_drop(SPECS["accuracy"], after, before, labels)
    assert gain.known() == pytest.approx(-3.0)


def test_a_row_of_a_hundred_is_one_point_and_so_within_one() -> None:
    labels = np.arange(100) % 10
    for wrong in range(90):  # 0.96 - 0.95 is 0.010000000000000009
        before, after = scores(labels, np.arange(100) >= wrong), scores(labels, np.arange(100) >= wrong + 1)
        drop, _ = paired_drop(SPECS["accuracy"], before, after, labels)
        assert drop.known() <= 1.0


def test_a_point_of_an_error_is_one_percent_of_the_baselines_value() -> None:
    truth = np.zeros((100, 1))
    before, after = np.ones((100, 1)), np.full((100, 1), 1.05)
    drop, error = paired_drop(SPECS["mae"], before, after, truth)
    assert drop.known() == pytest.approx(5.0)
    assert error == pytest.approx(0.1)  # the floor: rows that differ by a point
    with pytest.raises(ValueError, match="is 0, so a point"):
        paired_drop(SPECS["mae"], truth, after, truth)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_no_disagreement_in_a_few_rows_is_not_zero_error(name: str) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    outputs = generator.standard_normal((90, 3)) + np.eye(3)[labels]
    targets = labels if name in ("accuracy", "f1", "auc") else np.eye(3)[labels]
    if name == "agreement":
        targets = outputs
    drop, error = paired_drop(SPECS[name], outputs, outputs, targets)
    assert drop.value == 0.0
    assert error > 0.05
    assert drop.low is not None
    assert drop.high is not None
    assert drop.low < 0.0 < drop.high


@pytest.mark.parametrize("rates", [(0.01, 0.03), (0.05, 0.05), (0.002, 0.02)])
def test_the_adjusted_wald_interval_holds_the_true_drop(rates: tuple[float, float]) -> None:
    better, worse = rates
    generator = np.random.default_rng(1)
    held, errors, seen = 0, [], []
    for _ in range(400):
        draw = generator.random(360)
        labels = np.zeros(360, int)
        before, after = scores(labels, draw >= better), scores(labels, (draw < better) | (draw > better + worse))
        drop, error = paired_drop(SPECS["accuracy"], before, after, labels)
        assert drop.low is not None
        assert drop.high is not None
        held += drop.low <= 100 * (worse - better) <= drop.high
        errors.append(error)
        seen.append(drop.known())
    assert held / 400 >= 0.93
    assert np.mean(errors) == pytest.approx(np.std(seen), rel=0.35)


def test_the_bootstrap_agrees_with_students_interval_on_a_mean() -> None:
    generator = np.random.default_rng(2)
    truth = generator.standard_normal((400, 1))
    before = truth + 0.3 * generator.standard_normal((400, 1))
    after = before + 0.1 * generator.standard_normal((400, 1))
    by_rows, error = paired_drop(SPECS["mse"], before, after, truth)
    by_draws, drawn_error = paired_drop(SPECS["rmse"], before, after, truth)  # half the points, to first order
    assert drawn_error == pytest.approx(error / 2, rel=0.3)
    assert (by_draws.high or 0) - (by_draws.low or 0) == pytest.approx(
        ((by_rows.high or 0) - (by_rows.low or 0)) / 2, rel=0.3
    )
    assert paired_drop(SPECS["rmse"], before, after, truth) == (by_draws, drawn_error)


def test_a_users_metric_that_cannot_be_resampled_keeps_its_value_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def ordered(outputs, targets):\n"
        "    if len(set(outputs[:, 0].tolist())) < len(outputs): raise ValueError('rows twice')\n"
        "    return float((outputs - targets).mean())\n"
    )
    rows = np.arange(1.0, 51.0)[:, None]
    spec, _ = metrics.find(f"{tmp_path}/own.py:ordered")
    drop, error = paired_drop(spec, rows, rows * 0.5, np.zeros((50, 1)))
    assert drop.known() == pytest.approx(50.0)
    assert "0 of 1000 resamples: rows twice" in drop.note
    assert error > 1.0
