import numpy as np
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.workload.labels import check_metric, choose_metric, fit_labels

SCORES = TensorSpec(name="logits", dtype="float32", shape=("batch", 3))
ONE = TensorSpec(name="score", dtype="float32", shape=("batch", 1))
STEPS = TensorSpec(name="logits", dtype="float32", shape=("batch", 5, 3))
CLASSES = np.arange(30) % 3


@pytest.mark.parametrize(
    ("target", "output", "metric"),
    [
        (CLASSES, SCORES, "accuracy"),
        (CLASSES.astype(np.float64), SCORES, "accuracy"),
        (CLASSES[:, None], SCORES, "accuracy"),
        (np.eye(3)[CLASSES], SCORES, "accuracy"),
        (np.zeros((30, 5), np.int32), STEPS, "accuracy"),
        (CLASSES % 2, ONE, "auc"),
        ((CLASSES % 2).astype(np.float32)[:, None], ONE, "auc"),
        (CLASSES / 7, ONE, "mse"),
        (np.random.default_rng(0).random((30, 3)), SCORES, "mse"),
    ],
)
def test_the_metric_follows_from_the_labels(target, output, metric):
    spec, notes = choose_metric(None, [target], output)
    assert spec.name == metric
    assert notes
    made, _ = fit_labels([target], output, spec)
    assert str(made[0].dtype) == ("float32" if metric == "mse" else "int64")


def test_one_hot_labels_become_classes():
    spec, _ = choose_metric(None, [np.eye(3)[CLASSES]], SCORES)
    made, notes = fit_labels([np.eye(3)[CLASSES]], SCORES, spec)
    assert np.array_equal(made[0], CLASSES)
    assert notes


def test_without_labels_it_is_agreement_and_said():
    spec, notes = choose_metric(None, [], SCORES)
    assert spec.name == "agreement"
    assert "without labels" in notes[0]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (CLASSES + 1, "labels run up to 3, but the model scores 3 classes, 0 to 2"),
        (CLASSES - 9, "every label is negative"),
        (np.where(CLASSES == 1, np.nan, CLASSES), "labels of 10 rows are NaN"),
        (CLASSES + 0.5, "and fractions"),
        (np.zeros((30, 4)), r"the targets have the shape \[rows, 4\]; the model's output logits has \[rows, 3\]"),
    ],
)
def test_labels_that_do_not_fit_are_one_clear_sentence(target, said):
    spec, _ = choose_metric("accuracy", [target], SCORES)
    with pytest.raises(Problem, match=said) as caught:
        fit_labels([target], SCORES, spec)
    assert caught.value.kind == "input"


def test_labels_from_one_are_said_to_start_at_one():
    with pytest.raises(Problem) as caught:
        fit_labels([CLASSES + 1], SCORES, choose_metric("accuracy", [CLASSES], SCORES)[0])
    assert "subtract 1" in caught.value.hint


def test_a_metric_that_needs_labels_is_refused_without():
    with pytest.raises(Problem, match="needs labels"):
        choose_metric("accuracy", [], SCORES)


def test_an_unknown_metric_lists_those_that_are():
    with pytest.raises(Problem, match="no metric called") as caught:
        choose_metric("acuracy", [CLASSES], SCORES)
    assert "accuracy" in caught.value.hint


def test_a_metric_for_values_is_refused_for_classes():
    with pytest.raises(Problem, match="mse needs values"):
        fit_labels([CLASSES], SCORES, choose_metric("mse", [CLASSES], SCORES)[0])


def test_a_users_own_metric_is_found_and_its_direction_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def cost(outputs, targets): return float(abs(outputs.argmax(1) - targets).mean())\n"
        "cost.higher_is_better = False\n"
        "def unsaid(outputs, targets): raise ZeroDivisionError('oh')\n"
    )
    spec, notes = choose_metric(f"{tmp_path}/mine.py:cost", [CLASSES], SCORES)
    assert (spec.higher_is_better, notes) == (False, ())
    check_metric(spec, [("logits", np.eye(3)[CLASSES])], CLASSES)
    spec, notes = choose_metric(f"{tmp_path}/mine.py:unsaid", [CLASSES], SCORES)
    assert "taken as better" in notes[0]
    with pytest.raises(Problem, match="ZeroDivisionError: oh"):
        check_metric(spec, [("logits", np.eye(3)[CLASSES])], CLASSES)
