"""How far a candidate's outputs lie from the original's: a companion of the drop with far less noise.

    divergence(SPECS["accuracy"], reference_outputs, outputs, labels)       # 0: the same; more is further

Few rows change sides, but every row says how far it moved: on the same rows this tells candidates apart
that the metric cannot (driver/search/drops.py makes use of it). Class scores: the mean Kullback-Leibler divergence
of the candidate's probabilities from the original's, in nats; scores that are each yes or no: the same of two
classes; whole numbers: the share of unequal ones; all else: the mean squared difference over the variance.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.metrics import Outputs, first
from petra_deploy.core.scores import agree_by_class, class_axis
from petra_deploy.core.workload import MetricSpec

Array = NDArray[Any]
_BY_LABELS = ("accuracy", "f1", "auc")  # of classes
_JUDGE_ALL = ":"  # in the name of a user's own metric, which sees every output
_LEAST = 1e-12


def divergence(metric: MetricSpec, reference: Outputs, outputs: Outputs, targets: Outputs | None) -> float:
    """The mean over all rows, at least 0. Of several outputs the first, which metrics judge; a user's own: of all.

    `targets` are those of the metric: labels, or for agreement the original's outputs.
    """
    if _JUDGE_ALL in metric.name and isinstance(reference, Mapping) and isinstance(outputs, Mapping):
        return float(np.mean([_apart(reference[name], outputs[name]) for name in reference]))
    theirs, ours = first(reference), first(outputs)
    labels = None if metric.name == "agreement" or targets is None else first(targets)
    classes = agree_by_class(theirs) if metric.name == "agreement" else metric.name in _BY_LABELS
    if not classes or not np.issubdtype(theirs.dtype, np.floating):
        return _apart(theirs, ours)
    axis = _axis(theirs.shape, labels)
    p, q = (_log_probabilities(values.astype(np.float64), axis) for values in (theirs, ours))
    each = np.sum(np.exp(p) * (p - q), axis=-1 if axis is None else axis)
    counted = labels >= 0 if labels is not None and labels.shape == each.shape else np.ones(each.shape, bool)
    return max(float(each[counted].mean()), 0.0) if counted.any() else 0.0


def _axis(shape: tuple[int, ...], labels: Array | None) -> int | None:
    """The axis of the classes; None where each score is yes or no: one column, or several labels a row."""
    last = len(shape) - 1
    if last < 1 or shape[-1] == 1:
        return None
    if labels is not None and labels.shape == shape:
        return last if np.all(labels.sum(axis=-1) == 1) else None  # one-hot, or several
    found = None if labels is None else class_axis(shape, labels.shape)
    return last if found is None else found


def _log_probabilities(scores: Array, axis: int | None) -> Array:
    """Of each class along `axis`; of yes and no in a new last axis where there is none."""
    if axis is None:
        if scores.min() >= 0 and scores.max() <= 1:
            chances = np.clip(np.stack([1 - scores, scores], axis=-1), _LEAST, 1.0)
            return np.asarray(np.log(chances))
        scores, axis = np.stack([np.zeros_like(scores), scores], axis=-1), -1
    elif scores.min() >= 0 and np.allclose(scores.sum(axis=axis), 1, atol=1e-3):
        return np.asarray(np.log(np.clip(scores, _LEAST, 1.0)))
    shifted = scores - scores.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True)))


def _apart(theirs: Array, ours: Array) -> float:
    """Share of unequal whole numbers; else the squared difference over the variance."""
    if not np.issubdtype(theirs.dtype, np.floating):
        return float(np.mean(theirs != ours))
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    return float(np.mean((a - b) ** 2) / max(float(a.var()), _LEAST))
