"""Each sort of output is told from the original's values, the labels and the metric, and has its loss."""

import numpy as np
import pytest
import torch
from torch import Tensor

from petra_deploy.core.errors import Problem
from petra_deploy.core.metrics import SPECS
from petra_deploy.worker.training.losses import Weights, describe, distance_for, from_labels, from_original

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(40, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 40)
BOTH = Weights(distil=1.0, labels=1.0, temperature=2.0)


def softmax(values: np.ndarray) -> np.ndarray:
    return torch.tensor(values).softmax(-1).numpy()


@pytest.mark.parametrize(
    ("values", "target", "metric", "sort", "axis", "labelled"),
    [
        (SCORES, LABELS, "accuracy", "classes", 1, True),
        (SCORES, None, "agreement", "classes", 1, False),
        (RNG.normal(size=(6, 7, 3)), RNG.integers(0, 3, (6, 7)), "accuracy", "classes", 2, True),
        (RNG.normal(size=(6, 3, 4, 4)), RNG.integers(0, 3, (6, 4, 4)), "accuracy", "classes", 1, True),
        (RNG.normal(size=(40, 1)), RNG.integers(0, 2, 40), "auc", "yes_no", -1, True),
        (RNG.normal(size=40), RNG.integers(0, 2, 40).astype(bool), "accuracy", "yes_no", -1, True),
        (RNG.normal(size=(40, 3)), RNG.integers(0, 2, (40, 3)), "score.py:macro", "yes_no", -1, True),
        (RNG.normal(size=(40, 1)), RNG.normal(size=40), "rmse", "values", -1, True),
        (RNG.normal(size=(40, 1)), RNG.integers(0, 2, 40), "mse", "values", -1, True),
        (RNG.normal(size=(40, 8)), None, "cosine", "values", -1, False),
        (RNG.normal(size=(40, 3, 8, 8)), None, "agreement", "values", -1, False),
        (LABELS, LABELS, "accuracy", "whole", -1, False),
    ],
)
def test_the_sort_of_an_output(
    values: np.ndarray, target: np.ndarray | None, metric: str, sort: str, axis: int, labelled: bool
) -> None:
    spec = SPECS.get(metric, SPECS["accuracy"])
    found = describe(values, target, spec)
    assert (found.sort, found.axis, found.labelled) == (sort, axis, labelled)


@pytest.mark.parametrize("values", [SCORES, softmax(SCORES), SCORES[:, :1], softmax(SCORES)[:, :1]])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_originals_own_outputs_are_at_distance_nought(values: np.ndarray, temperature: float) -> None:
    target = LABELS if values.shape[1] > 1 else LABELS % 2
    output = describe(values, target, SPECS["accuracy"])
    theirs = torch.tensor(values)
    assert from_original(output, theirs, theirs, temperature).item() == pytest.approx(0, abs=1e-5)
    assert from_original(output, theirs.flip(0), theirs, temperature).item() > 0.01


def test_scores_and_their_probabilities_are_trained_alike() -> None:
    logits, other = torch.tensor(SCORES), torch.tensor(SCORES[::-1].copy())
    as_scores = describe(SCORES, LABELS, SPECS["accuracy"])
    as_shares = describe(softmax(SCORES), LABELS, SPECS["accuracy"])
    assert not as_scores.probabilities
    assert as_shares.probabilities
    labels = torch.tensor(LABELS)
    for a, b in (
        (
            from_original(as_scores, other, logits, 2.0),
            from_original(as_shares, other.softmax(1), logits.softmax(1), 2.0),
        ),
        (from_labels(as_scores, other, labels), from_labels(as_shares, other.softmax(1), labels)),
    ):
        assert a.item() == pytest.approx(b.item(), rel=1e-4)


def test_values_are_measured_in_units_of_the_originals_spread() -> None:
    values = RNG.normal(size=(100, 2)).astype(np.float32)
    theirs = torch.tensor(values)
    small = describe(values, None, SPECS["agreement"].__class__(name="mse", higher_is_better=False))
    large = describe(values * 1000, None, SPECS["mse"])
    near = from_original(small, theirs + 0.5, theirs, 1.0).item()
    assert near == pytest.approx(from_original(large, (theirs + 0.5) * 1000, theirs * 1000, 1.0).item(), rel=1e-4)


def test_labels_below_zero_are_left_out_when_they_are_minus_100() -> None:
    values, labels = RNG.normal(size=(4, 6, 3)), RNG.integers(0, 3, (4, 6))
    output = describe(values, labels, SPECS["accuracy"])
    masked = torch.tensor(labels)
    masked[:, 3:] = -100
    ours = torch.tensor(values)
    shorter = from_labels(output, ours[:, :3], masked[:, :3])
    assert from_labels(output, ours, masked).item() == pytest.approx(shorter.item())


def test_without_labels_the_original_alone_is_followed() -> None:
    distance = distance_for([SCORES], None, SPECS["agreement"], BOTH)
    same = torch.tensor(SCORES)
    assert distance([same], [same], None).item() == pytest.approx(0, abs=1e-5)


def test_several_outputs_count_alike_and_whole_numbers_not_at_all() -> None:
    tops = SCORES.argmax(1)
    distance = distance_for([SCORES, SCORES[:, :2], tops], LABELS, SPECS["accuracy"], Weights(1.0, 0.0, 1.0))
    a, b, c = torch.tensor(SCORES), torch.tensor(SCORES[:, :2].copy()), torch.tensor(tops)
    assert distance([a, b, c + 1], [a, b, c], None).item() == pytest.approx(0, abs=1e-5)
    assert distance([a, 2 * b, c], [a, b, c], None).item() > 0.01


def test_outputs_of_other_shapes_than_the_originals_are_a_mismatch() -> None:
    distance = distance_for([SCORES], LABELS, SPECS["accuracy"], BOTH)
    ours: Tensor = torch.zeros(4, 3)
    with pytest.raises(Problem, match=r"\(4, 3\).*\(4, 5\)") as caught:
        distance([ours], [torch.tensor(SCORES[:4])], None)
    assert caught.value.kind == "mismatch"


def test_outputs_of_whole_numbers_alone_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        distance_for([LABELS], LABELS, SPECS["accuracy"], BOTH)


def test_what_a_negative_label_leaves_out_trains_nothing() -> None:
    values = RNG.normal(size=(6, 7, 3)).astype(np.float32)
    target = RNG.integers(0, 3, (6, 7))
    target[:, 4:] = -1
    distance = distance_for([values], target, SPECS["accuracy"], BOTH)
    ours = torch.tensor(values[::-1].copy(), requires_grad=True)
    loss = distance([ours], [torch.tensor(values)], torch.tensor(target))
    loss.backward()
    assert ours.grad is not None
    assert ours.grad[:, 4:].abs().max() == 0
    assert ours.grad[:, :4].abs().min() > 0
    shorter = distance([ours[:, :4]], [torch.tensor(values[:, :4])], torch.tensor(target[:, :4]))
    assert loss.item() == pytest.approx(shorter.item(), rel=1e-5)


def test_rows_without_a_label_still_learn_from_the_original() -> None:
    target = np.full(40, -1)
    target[0] = 1
    distance = distance_for([SCORES], target, SPECS["accuracy"], BOTH)
    ours = torch.tensor(SCORES[::-1].copy(), requires_grad=True)
    distance([ours[1:]], [torch.tensor(SCORES[1:])], torch.tensor(target[1:])).backward()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()
    assert ours.grad[1:].abs().max() > 0
