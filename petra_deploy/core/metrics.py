"""The metrics that judge a candidate, ten lines each, and the door for a user's own.

    value = evaluate("accuracy", outputs, labels)
    evaluate("score.py:macro_recall", outputs, labels)       # a function (outputs, targets) -> float

`outputs` is the array of a model's only output, or {name: array} where it has several; metrics
of this file then judge the first one. Rows are dimension 0. Class scores may be logits or
probabilities, (rows, classes) or (rows, ..., classes), or (rows, classes, ...) where only that
fits the labels; a single column is the score of class 1. What cannot be judged is a ValueError
of one sentence. Written out by hand, and compared with scikit-learn's in the tests.
"""

import hashlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import BadInput
from petra_deploy.core.scores import agree_by_class, class_axis
from petra_deploy.core.workload import MetricSpec

Array = NDArray[Any]
Outputs = Array | Mapping[str, Array]
Metric = Callable[[Any, Any], float]
M = TypeVar("M", bound=Callable[..., Any])


def metric(*, higher_is_better: bool, needs_labels: bool = True, bounded: bool = False) -> Callable[[M], M]:
    """Mark a function as a metric. `bounded` by 1: a point is 0.01; else 1% of the baseline's value.

    A metric that needs no labels is given the original model's outputs where there are none.
    """

    def mark(function: M) -> M:
        spec = MetricSpec(name=getattr(function, "__name__", "metric"), higher_is_better=higher_is_better,
                          needs_labels=needs_labels, bounded=bounded)  # fmt: skip
        setattr(function, "spec", spec)  # noqa: B010 - functions have no such attribute for mypy
        return function

    return mark


@metric(higher_is_better=True, bounded=True)
def accuracy(outputs: Outputs, targets: Array) -> float:
    """The share of right labels: of each row, then the mean over rows. Negative labels are left out."""
    return float(np.mean(_right(outputs, targets)))


@metric(higher_is_better=True, bounded=True)
def f1(outputs: Outputs, targets: Array) -> float:
    """The plain mean of the F1 of each class that occurs in labels or predictions."""
    guessed, truth = predictions(outputs, targets)
    guessed, truth = guessed[truth >= 0], truth[truth >= 0]
    classes = np.union1d(guessed, truth)
    hits = np.array([np.sum((guessed == c) & (truth == c)) for c in classes])
    sizes = np.array([np.sum(guessed == c) + np.sum(truth == c) for c in classes])
    return float(np.mean(2 * hits / sizes))


@metric(higher_is_better=True, bounded=True)
def auc(outputs: Outputs, targets: Array) -> float:
    """Area under the ROC curve; with more than two classes the mean of each class against the rest."""
    scores = first(outputs).astype(np.float64)
    scores = scores.reshape(len(scores), -1)
    labels = _labels(targets, scores.shape[1])
    if labels.shape != (len(scores),):
        raise ValueError(f"auc needs one label a row; the targets have shape {labels.shape}")
    if scores.shape[1] <= 2:
        return _area(scores[:, -1] - (scores[:, 0] if scores.shape[1] == 2 else 0), labels == 1)
    if scores.min() < 0 or scores.max() > 1 or not np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    return float(np.mean([_area(scores[:, c], labels == c) for c in np.unique(labels)]))


@metric(higher_is_better=False)
def mse(outputs: Outputs, targets: Array) -> float:
    """Mean squared error."""
    return float(np.mean(_squared(outputs, targets)))


@metric(higher_is_better=False)
def mae(outputs: Outputs, targets: Array) -> float:
    """Mean absolute error."""
    return float(np.mean(_absolute(outputs, targets)))


@metric(higher_is_better=False)
def rmse(outputs: Outputs, targets: Array) -> float:
    """Root of the mean squared error, in the unit of the targets."""
    return float(np.sqrt(np.mean(_squared(outputs, targets))))


@metric(higher_is_better=True, bounded=True)
def r2(outputs: Outputs, targets: Array) -> float:
    """Share of the targets' variance that is explained; columns are averaged."""
    guessed, truth = _aligned(outputs, targets)
    spread = np.sum((truth - truth.mean(axis=0)) ** 2, axis=0)
    if not np.all(spread > 0):
        raise ValueError("r2 is not defined where a column of the targets never changes")
    return float(np.mean(1 - np.sum((truth - guessed) ** 2, axis=0) / spread))


@metric(higher_is_better=True, needs_labels=False, bounded=True)
def cosine(outputs: Outputs, targets: Array) -> float:
    """Mean cosine between a row of the output and of the target (embeddings, spectra)."""
    return float(np.mean(_cosines(outputs, targets)))


@metric(higher_is_better=True, needs_labels=False, bounded=True)
def agreement(outputs: Outputs, targets: Outputs) -> float:
    """How far a candidate agrees with the original, whose outputs are the `targets`; 1 is fully.

    Class scores, (rows, classes) or (rows, steps, classes) with two classes or more: the share of
    equal top classes. Whole numbers: the share of equal ones. All else (one column, images): the
    share of the original's variance that is reproduced, 1 - mean((a - b)^2) / var(b), like r2.
    """
    return float(np.mean(_agreeing(outputs, targets)))


def predictions(outputs: Outputs, targets: Array) -> tuple[Array, Array]:
    """(predicted, true) classes as whole numbers of one shape, from scores and labels of any kind.

    One-hot labels are read as classes; labels with several ones a row are refused.
    """
    scores, labels = first(outputs), np.asarray(targets)
    if scores.ndim > 1 and scores.shape[-1] == 1:
        scores = scores[..., 0]
    one_hot = scores.ndim > 1 and labels.shape == scores.shape and np.issubdtype(scores.dtype, np.floating)
    labels = _labels(labels, scores.shape[-1] if one_hot else 0)
    if np.issubdtype(scores.dtype, np.integer) and scores.shape == labels.shape:
        return scores.astype(np.int64), labels
    if scores.shape == labels.shape:
        _in_range(labels, 2)
        probabilities = scores.min() >= 0 and scores.max() <= 1
        return (scores > (0.5 if probabilities else 0)).astype(np.int64), labels
    axis = class_axis(scores.shape, labels.shape)
    if axis is not None:
        _in_range(labels, scores.shape[axis])
        return scores.argmax(axis=axis), labels
    raise ValueError(f"outputs of shape {scores.shape} are no class scores for labels of shape {labels.shape}")


def first(outputs: Outputs) -> Array:
    """The output that the metrics of this file judge."""
    return np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs)


def _right(outputs: Outputs, targets: Array) -> Array:
    guessed, truth = predictions(outputs, targets)
    rows = len(truth)
    counted, right = (truth >= 0).reshape(rows, -1), ((guessed == truth) & (truth >= 0)).reshape(rows, -1)
    counts = counted.sum(axis=1)
    if not counts.any():
        raise ValueError("every label is negative, which means: left out")
    return np.asarray(right.sum(axis=1)[counts > 0] / counts[counts > 0])


def _squared(outputs: Outputs, targets: Array) -> Array:
    guessed, truth = _aligned(outputs, targets)
    return np.asarray(np.mean((guessed - truth) ** 2, axis=1))


def _absolute(outputs: Outputs, targets: Array) -> Array:
    guessed, truth = _aligned(outputs, targets)
    return np.asarray(np.mean(np.abs(guessed - truth), axis=1))


def _cosines(outputs: Outputs, targets: Outputs) -> Array:
    a, b = _aligned(outputs, targets)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = (norms == 0) & (np.abs(a - b).max(axis=1) == 0)  # two zero vectors agree
    return np.asarray(np.where(norms > 0, np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1), alike))


def _agreeing(outputs: Outputs, targets: Outputs) -> Array:
    ours, theirs = first(outputs), first(targets)
    if ours.shape != theirs.shape:
        raise ValueError(f"outputs of shape {ours.shape} cannot agree with the original's {theirs.shape}")
    if agree_by_class(theirs):
        ours, theirs = ours.argmax(axis=-1), theirs.argmax(axis=-1)
    if not np.issubdtype(theirs.dtype, np.floating):
        return np.asarray(np.mean((ours == theirs).reshape(len(ours), -1), axis=1))
    errors, (_, truth) = _squared(ours, theirs), _aligned(ours, theirs)
    variance = float(truth.var())
    return 1 - errors / variance if variance > 0 else np.asarray(errors == 0, dtype=np.float64)


ROWS: dict[str, Callable[[Any, Any], Array]] = {  # metrics that are the mean of a figure of each row
    "accuracy": _right, "mse": _squared, "mae": _absolute, "cosine": _cosines, "agreement": _agreeing,
}  # fmt: skip
_BUILTIN: dict[str, Metric] = {
    f.__name__: f for f in (accuracy, f1, auc, mse, mae, rmse, r2, cosine, agreement)
}  # fmt: skip
SPECS: dict[str, MetricSpec] = {name: getattr(function, "spec") for name, function in _BUILTIN.items()}  # noqa: B009


def find(name: str) -> tuple[MetricSpec, Metric]:
    """A metric by its name, or a user's by "file.py:function", and its spec.

    A file that ends in .pkl is a function that the Python API was given. A function that was not
    marked with `metric` counts as higher-is-better, unbounded, in need of labels. Naming the file
    is trust in it: its code runs here. Raises BadInput.
    """
    if name in _BUILTIN:
        return SPECS[name], _BUILTIN[name]
    if ":" not in name:
        raise BadInput(f"there is no metric called {name!r}", f"known: {', '.join(_BUILTIN)}; or FILE.py:FUNCTION")
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise BadInput(f"the metric's file {path} does not exist")
    function = _unpickled(Path(path)) if path.endswith(".pkl") else getattr(_load(Path(path)), attribute, None)
    if not callable(function):
        raise BadInput(f"{path} has no function called {attribute!r}")
    spec = getattr(function, "spec", MetricSpec(name=name, bounded=False))
    return replace(spec, name=name, digest=hashlib.sha256(Path(path).read_bytes()).hexdigest()), function


def get(spec: MetricSpec | str) -> Metric:
    """The function of a metric; see `find`."""
    return find(spec if isinstance(spec, str) else spec.name)[1]


def evaluate(spec: MetricSpec | str, outputs: Outputs, targets: Outputs | None) -> float:
    """The metric's value. Raises ValueError where it is not one finite number."""
    name = spec if isinstance(spec, str) else spec.name
    found = get(name)(outputs, targets)
    try:
        value = float(found)
    except (TypeError, ValueError):
        raise ValueError(f"the metric {name} returned {type(found).__name__}, not a number") from None
    if not np.isfinite(value):
        raise ValueError(f"the metric {name} is {value} on these rows, not a finite number")
    return value


def _unpickled(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"petra_metric_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"the metric's file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.append(folder)  # a user's file may import its neighbours; last, so it shadows nothing
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def _aligned(outputs: Outputs, targets: Outputs) -> tuple[Array, Array]:
    """Both as float64 of shape (rows, values), never broadcast."""
    a, b = (first(x).astype(np.float64) for x in (outputs, targets))
    if a.size != b.size or len(a) != len(b) or a.squeeze().shape != b.squeeze().shape:
        raise ValueError(f"outputs of shape {a.shape} do not fit targets of shape {b.shape}")
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def _labels(targets: Array, classes: int) -> Array:
    """Labels as whole numbers; one-hot rows over `classes` become classes."""
    labels = np.asarray(targets)
    if classes > 1 and labels.ndim > 1 and labels.shape[-1] == classes:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all()):
            raise ValueError("the targets have a column for each class but are not one-hot; give a metric of your own")
        return np.asarray(labels.argmax(axis=-1))
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise ValueError("the targets are not whole numbers, so they are no class labels")
    return whole


def _in_range(labels: Array, classes: int) -> None:
    if labels.max() >= classes:
        raise ValueError(f"the targets hold label {labels.max()}, but the model scores classes 0 to {classes - 1}")


def _area(scores: Array, positive: Array) -> float:
    """Area under the ROC curve by rank sums; ties share their mean rank."""
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        raise ValueError("auc needs rows of at least two classes")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)]
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
