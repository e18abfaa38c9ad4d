"""Settle what the labels mean for this model, and which metric judges it.

    spec, notes = choose_metric(None, targets, output, script_metric=None)
    targets, notes = fit_labels(targets, output, spec)

Whole-number labels under class scores are judged by accuracy, 0/1 under a single score by auc,
anything of the output's own shape by mse, and no labels by agreement with the original.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from petra_deploy.core import metrics
from petra_deploy.core.errors import BadInput, Problem
from petra_deploy.core.workload import MetricSpec, TensorSpec
from petra_deploy.worker.workload.fit import show
from petra_deploy.worker.workload.table import Array
from petra_deploy.worker.workload.words import one_line

Kind = Literal["classes", "binary", "one_hot", "values"]
_FOR_CLASSES = frozenset(("accuracy", "f1", "auc"))
_FOR_VALUES = frozenset(("mse", "mae", "rmse", "r2"))
_KNOWN = f"one of {', '.join(metrics.SPECS)}, or FILE.py:FUNCTION"


def choose_metric(name: str | None, targets: Sequence[Array], output: TensorSpec) -> tuple[MetricSpec, tuple[str, ...]]:
    """The metric the user named, else the one that fits the labels. Raises Problem("input")."""
    if name is not None:
        spec, notes = _named(name)
        if spec.needs_labels and not targets:
            raise Problem(
                "input", f"the metric {name} needs labels, and the data has none",
                "add an array called target, or use --metric agreement",
            )  # fmt: skip
        return spec, notes
    if not targets:
        return metrics.SPECS["agreement"], (
            "without labels, accuracy cannot be measured: figures are agreement with the original model",
        )
    chosen: dict[Kind, str] = {"classes": "accuracy", "one_hot": "accuracy", "binary": "auc", "values": "mse"}
    metric = chosen[kind_of(targets, output)]
    return metrics.SPECS[metric], (f"the metric is {metric}, which fits the labels; --metric chooses another",)


def kind_of(targets: Sequence[Array], output: TensorSpec) -> Kind:
    """What the labels are to an output of this shape. Raises Problem where they do not fit it."""
    one = targets[0]
    shape = output.shape
    whole = all(_whole(target) for target in targets)
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        if one.ndim == 1 or (one.ndim == 2 and one.shape[1] == 1):
            return "binary" if all(np.isin(target, (0, 1)).all() for target in targets) else "values"
    elif len(one.shape) == len(shape) and _alike(one.shape[1:], shape[1:]):
        hot = len(shape) == 2 and all(np.isin(t, (0, 1)).all() and (t.sum(axis=1) == 1).all() for t in targets)
        return "one_hot" if hot else "values"
    elif whole and _are_classes(one, output):
        return "classes"
    raise Problem(
        "input",
        f"the targets have the shape {show(one.shape)}" + ("" if whole else " and fractions")
        + f"; the model's output {output.name} has {show(shape)}",
        "give one class number a row for class scores, or values of the output's own shape",
    )  # fmt: skip


def fit_labels(targets: Sequence[Array], output: TensorSpec, spec: MetricSpec) -> tuple[list[Array], tuple[str, ...]]:
    """The labels as int64 classes or float32 values. Raises Problem("input") for labels out of range."""
    for target in targets:
        if target.dtype.kind == "f" and not np.isfinite(target).all():
            bad = int((~np.isfinite(target.reshape(len(target), -1))).any(axis=1).sum())
            raise Problem("input", f"the labels of {bad} rows are NaN or infinite", "drop those rows")
    if ":" in spec.name or spec.name in ("agreement", "cosine"):
        return [_plain(target) for target in targets], ()
    kind = kind_of(targets, output)
    if spec.name in _FOR_CLASSES and kind == "values":
        raise Problem(
            "input", f"{spec.name} needs class labels; the targets hold other values", "use --metric mse, mae or r2"
        )
    if spec.name in _FOR_VALUES and kind in ("classes", "one_hot"):
        raise Problem(
            "input", f"{spec.name} needs values of the output's shape; the targets are classes", "use --metric accuracy"
        )
    if kind == "one_hot":
        return [target.argmax(axis=1).astype(np.int64) for target in targets], ("one-hot labels were read as classes",)
    if kind == "values":
        return [_plain(target).astype(np.float32) for target in targets], ()
    made: list[Array] = [target.astype(np.int64) for target in targets]
    if kind == "classes":
        if len(output.shape) == 2:
            made = [target.reshape(len(target)) for target in made]
        _check_range(made, output)
    note = "labels that came as fractions are whole numbers, and were read as classes"
    return made, (note,) if kind == "classes" and any(t.dtype.kind == "f" for t in targets) else ()


def check_metric(spec: MetricSpec, outputs: Sequence[tuple[str, Array]], target: Array | None) -> None:
    """Try the metric on some rows. Raises Problem("input") with what it says."""
    given = outputs[0][1] if len(outputs) == 1 else dict(outputs)
    truth = given if target is None or spec.name == "agreement" else target
    try:
        metrics.evaluate(spec, given, truth)
    except Exception as error:  # a user's metric may raise anything
        if spec.name in ("auc", "r2") and target is not None:
            return  # these rows alone may not define it
        said = str(error) if isinstance(error, ValueError | BadInput) else one_line(error)
        raise Problem(
            "input", f"the metric {spec.name} cannot judge this model's outputs: {said}", f"--metric takes {_KNOWN}"
        ) from error


def _named(name: str) -> tuple[MetricSpec, tuple[str, ...]]:
    file, colon, function = name.rpartition(":")
    if colon:
        name = f"{Path(file).absolute()}:{function}"
    try:
        spec, found = metrics.find(name)
    except BadInput as error:
        raise Problem("input", error.message, error.hint or f"--metric takes {_KNOWN}") from None
    except (Exception, SystemExit) as error:
        raise Problem("input", f"the metric's file {file} raised {one_line(error)}", "run it once by itself") from error
    if not colon or hasattr(found, "spec"):
        return spec, ()
    marks = {
        key: bool(getattr(found, key)) for key in ("higher_is_better", "needs_labels", "bounded") if hasattr(found, key)
    }
    notes = (
        ()
        if "higher_is_better" in marks
        else (f"more is taken as better for {function}; set {function}.higher_is_better to say",)
    )
    return replace(
        spec,
        higher_is_better=marks.get("higher_is_better", spec.higher_is_better),
        needs_labels=marks.get("needs_labels", spec.needs_labels),
        bounded=marks.get("bounded", spec.bounded),
    ), notes


def _are_classes(target: Array, output: TensorSpec) -> bool:
    """Whether the target has one class where the output has scores of all: a row, a step, a pixel."""
    if len(output.shape) == 2 and (target.ndim == 1 or target.shape[1:] == (1,)):
        return True
    return target.ndim == len(output.shape) - 1 and _class_axis(target, output) is not None


def _check_range(targets: Sequence[Array], output: TensorSpec) -> None:
    axis = len(output.shape) - 1 if len(output.shape) == 2 else _class_axis(targets[0], output)
    classes = output.shape[axis] if axis is not None else None
    highest = max(int(target.max()) for target in targets)
    if isinstance(classes, int) and highest >= classes:
        hint = (
            "labels start at 0: subtract 1"
            if highest == classes and min(int(t.min()) for t in targets) == 1
            else ("check that model and data belong together")
        )
        raise Problem(
            "input", f"labels run up to {highest}, but the model scores {classes} classes, 0 to {classes - 1}", hint
        )
    if highest < 0:
        raise Problem("input", "every label is negative, which means: left out", "give classes from 0 up")


def _class_axis(target: Array, output: TensorSpec) -> int | None:
    """Which axis of the output holds the classes, if the others are the target's."""
    shape = output.shape
    for axis in (len(shape) - 1, 1):
        if _alike(target.shape[1:], (*shape[1:axis], *shape[axis + 1 :])):
            return axis
    return None


def _alike(a: Sequence[int | str], b: Sequence[int | str]) -> bool:
    return len(a) == len(b) and all(isinstance(y, str) or x == y for x, y in zip(a, b, strict=True))


def _whole(target: Array) -> bool:
    return target.dtype.kind in "iub" or bool(np.array_equal(target, np.trunc(target)))


def _plain(target: Array) -> Array:
    if target.dtype.kind == "f":
        return target.astype(np.float32)
    return target.astype(np.int64)
