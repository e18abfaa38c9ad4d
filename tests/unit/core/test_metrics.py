from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from petra_deploy.core import metrics
from petra_deploy.core.errors import BadInput

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 5, 300)
LOGITS = GENERATOR.standard_normal((300, 5)) + 2 * np.eye(5)[LABELS]
BINARY = GENERATOR.integers(0, 2, 300)
SCORE = np.round(GENERATOR.standard_normal(300) + BINARY, 1)  # rounded: ties
TRUTH = GENERATOR.standard_normal((300, 3))
GUESS = TRUTH + 0.3 * GENERATOR.standard_normal((300, 3))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_class_metrics_are_scikit_learns() -> None:
    guessed = LOGITS.argmax(1)
    assert metrics.accuracy(LOGITS, LABELS) == pytest.approx(oracle.accuracy_score(LABELS, guessed))
    assert metrics.f1(LOGITS, LABELS) == pytest.approx(oracle.f1_score(LABELS, guessed, average="macro"))
    assert metrics.auc(LOGITS, LABELS) == pytest.approx(
        oracle.roc_auc_score(LABELS, softmax(LOGITS), multi_class="ovr", average="macro")
    )
    assert metrics.auc(SCORE[:, None], BINARY) == pytest.approx(oracle.roc_auc_score(BINARY, SCORE))
    assert metrics.auc(np.stack([-SCORE, SCORE], 1), BINARY) == pytest.approx(oracle.roc_auc_score(BINARY, SCORE))


def test_regression_metrics_are_scikit_learns() -> None:
    assert metrics.mse(GUESS, TRUTH) == pytest.approx(oracle.mean_squared_error(TRUTH, GUESS))
    assert metrics.mae(GUESS, TRUTH) == pytest.approx(oracle.mean_absolute_error(TRUTH, GUESS))
    assert metrics.rmse(GUESS, TRUTH) ** 2 == pytest.approx(oracle.mean_squared_error(TRUTH, GUESS))
    assert metrics.r2(GUESS, TRUTH) == pytest.approx(oracle.r2_score(TRUTH, GUESS))


def test_probabilities_and_logits_are_judged_alike() -> None:
    for name in ("accuracy", "f1", "auc"):
        assert metrics.evaluate(name, LOGITS, LABELS) == pytest.approx(metrics.evaluate(name, softmax(LOGITS), LABELS))
    chance = 1 / (1 + np.exp(-SCORE))
    assert metrics.accuracy(SCORE[:, None], BINARY) == metrics.accuracy(chance[:, None], BINARY[:, None])


def test_one_hot_labels_are_classes_and_several_ones_are_refused() -> None:
    one_hot = np.eye(5)[LABELS]
    assert metrics.accuracy(LOGITS, one_hot) == metrics.accuracy(LOGITS, LABELS)
    with pytest.raises(ValueError, match="not one-hot"):
        metrics.accuracy(LOGITS, np.ones((300, 5)))


def test_a_score_at_each_step_is_judged_row_by_row_without_the_padding() -> None:
    scores = np.eye(3)[[[0, 1, 2], [2, 2, 2]]]
    assert metrics.accuracy(scores, np.array([[0, 1, 1], [2, -100, -100]])) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.accuracy(scores.transpose(0, 2, 1)[:, :, :2], np.array([[0, 1], [2, 2]])) == 1.0


@pytest.mark.parametrize("name", sorted(metrics.SPECS))
def test_each_direction_holds_on_a_perfect_and_on_a_ruined_model(name: str) -> None:
    spec = metrics.SPECS[name]
    classes = name in ("accuracy", "f1", "auc")
    truth = LABELS if classes else TRUTH
    perfect = np.eye(5)[LABELS] if classes else TRUTH
    ruined = np.roll(perfect, 1, axis=1) if classes else -TRUTH
    better, worse = metrics.evaluate(spec, perfect, truth), metrics.evaluate(spec, ruined, truth)
    assert (better > worse) is spec.higher_is_better
    if spec.bounded:
        assert better == pytest.approx(1.0)


def test_one_column_never_broadcasts_against_flat_targets() -> None:
    assert metrics.mse(np.arange(4.0)[:, None], np.arange(4.0)) == 0.0
    with pytest.raises(ValueError, match="do not fit"):
        metrics.mse(GUESS, TRUTH[:, 0])


def test_agreement_counts_equal_top_classes_and_explained_variance_else() -> None:
    changed = LOGITS.copy()
    changed[:30] = -changed[:30]
    same = np.mean(changed.argmax(1) == LOGITS.argmax(1))
    assert metrics.agreement(changed, LOGITS) == pytest.approx(same)
    column = TRUTH[:, :1]
    assert metrics.agreement(column, column) == 1.0
    assert metrics.agreement(column + 0.1, column) == pytest.approx(1 - 0.01 / column.var())
    assert metrics.agreement({"a": LOGITS, "b": TRUTH}, {"a": LOGITS, "b": GUESS}) == 1.0


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "words"),
    [
        ("accuracy", LOGITS, np.full(300, 5), "label 5"),
        ("accuracy", LOGITS, TRUTH[:, 0], "not whole numbers"),
        ("accuracy", LOGITS, LABELS[:7], "no class scores"),
        ("auc", SCORE, np.zeros(300, int), "two classes"),
        ("r2", GUESS, np.ones((300, 3)), "not defined"),
        ("agreement", LOGITS, LOGITS[:, :3], "cannot agree"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(name: str, outputs: np.ndarray, targets: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.evaluate(name, outputs, targets)


def test_a_users_function_is_loaded_from_its_file_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("FACTOR = 2\n")
    (tmp_path / "own.py").write_text(
        "from neighbour import FACTOR\n"
        "from petra_deploy.core.metrics import metric\n"
        "@metric(higher_is_better=False, needs_labels=False, bounded=True)\n"
        "def error(outputs, targets): return FACTOR * abs(outputs - targets).mean()\n"
        "def words(outputs, targets): return 'good'\n"
        "def nothing(outputs, targets): return float('nan')\n"
    )
    name = f"{tmp_path}/own.py:error"
    spec, function = metrics.find(name)
    assert (spec.name, spec.higher_is_better, spec.needs_labels, spec.bounded) == (name, False, False, True)
    assert function(np.ones(3), np.zeros(3)) == 2.0
    with pytest.raises(ValueError, match="returned str, not a number"):
        metrics.evaluate(f"{tmp_path}/own.py:words", LOGITS, LABELS)
    with pytest.raises(ValueError, match="is nan on these rows"):
        metrics.evaluate(f"{tmp_path}/own.py:nothing", LOGITS, LABELS)
    before = spec.digest
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("FACTOR *", "3 *"))
    assert metrics.find(name)[0].digest != before  # a score that was filed is not that of the changed code
    for unknown in ("acuracy", f"{tmp_path}/own.py:missing", f"{tmp_path}/absent.py:f"):
        with pytest.raises(BadInput):
            metrics.find(unknown)
