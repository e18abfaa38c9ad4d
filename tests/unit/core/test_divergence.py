import numpy as np
import pytest

from petra_deploy.core.divergence import divergence
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.workload import MetricSpec

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(50, 4))
OTHER = LOGITS + 0.3 * RANDOM.normal(size=LOGITS.shape)
LABELS = RANDOM.integers(0, 4, 50)


def softmax(scores, axis=-1):
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def by_hand(theirs, ours):
    p, q = softmax(theirs), softmax(ours)
    return np.mean([sum(a * np.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)])


@pytest.mark.parametrize("metric", ["accuracy", "f1", "auc", "agreement"])
def test_of_class_scores_it_is_the_kullback_leibler_divergence(metric):
    labels = LOGITS if metric == "agreement" else LABELS  # as the score job gives them
    assert divergence(SPECS[metric], LOGITS, OTHER, labels) == pytest.approx(by_hand(LOGITS, OTHER))
    assert divergence(SPECS[metric], LOGITS, LOGITS, labels) == pytest.approx(0, abs=1e-12)


def test_one_hot_labels_and_labels_in_a_column_are_labels():
    for labels in (np.eye(4)[LABELS], LABELS[:, None]):
        assert divergence(SPECS["accuracy"], LOGITS, OTHER, labels) == pytest.approx(by_hand(LOGITS, OTHER))


def test_images_agree_by_their_numbers():
    images = RANDOM.normal(size=(4, 3, 5, 5))
    moved = images - 0.2  # their own values are no labels: negative ones count
    assert divergence(SPECS["agreement"], images, moved, images) == pytest.approx(0.04 / images.var())


def test_probabilities_and_logits_give_the_same():
    found = divergence(SPECS["accuracy"], softmax(LOGITS), softmax(OTHER), LABELS)
    assert found == pytest.approx(by_hand(LOGITS, OTHER))


def test_a_constant_added_to_all_scores_of_a_row_is_no_difference():
    assert divergence(SPECS["accuracy"], LOGITS, LOGITS + 5, LABELS) == pytest.approx(0, abs=1e-12)


def test_one_score_a_row_is_yes_or_no():
    one, other = LOGITS[:, :1], OTHER[:, :1]
    two, others = (np.concatenate([np.zeros_like(x), x], axis=1) for x in (one, other))
    assert divergence(SPECS["auc"], one, other, LABELS % 2) == pytest.approx(by_hand(two, others))


def test_classes_in_the_second_axis_are_found_by_the_labels_and_steps_left_out_do_not_count():
    maps, moved = RANDOM.normal(size=(6, 3, 5, 7)), RANDOM.normal(size=(6, 3, 5, 7))
    labels = RANDOM.integers(-1, 3, (6, 5, 7))
    theirs, ours = (np.moveaxis(x, 1, -1)[labels >= 0] for x in (maps, moved))
    assert divergence(SPECS["accuracy"], maps, moved, labels) == pytest.approx(by_hand(theirs, ours))


def test_of_numbers_it_is_the_squared_difference_over_the_variance():
    moved = LOGITS + 0.1
    assert divergence(SPECS["mse"], LOGITS, moved, LOGITS) == pytest.approx(0.01 / LOGITS.var())


def test_whole_numbers_are_equal_or_not():
    assert divergence(SPECS["accuracy"], LABELS, np.where(np.arange(50) < 5, LABELS + 1, LABELS), LABELS) == 0.1


def test_a_users_own_metric_sees_every_output():
    own = MetricSpec(name="score.py:mine", bounded=False)
    theirs, ours = {"a": LOGITS, "b": LABELS}, {"a": LOGITS, "b": LABELS + 1}
    assert divergence(own, theirs, ours, LABELS) == pytest.approx(0.5)
    assert divergence(SPECS["accuracy"], theirs, ours, LABELS) == pytest.approx(0, abs=1e-12)
