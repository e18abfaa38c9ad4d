"""What recovery training minimises: distance from the original's outputs, and from the labels.

    distance = distance_for(teacher_outputs, target, metric, weights)
    loss = distance(outputs, batch.teacher, batch.target)

One loss for each sort of output, told from the original's outputs and the labels alone:

| output                          | from the original                   | from the labels          |
|---------------------------------|-------------------------------------|--------------------------|
| scores of two classes or more   | KL at a temperature                 | cross-entropy            |
| scores that are each yes or no  | binary cross-entropy at temperature | binary cross-entropy     |
| any other number                | squared error over its variance     | the same, where the      |
|                                 |                                     | metric is a regression's |
| whole numbers                   | nothing: no gradient passes         |                          |

Labels belong to the first output. Several outputs count alike. A negative label means "left out":
it trains nothing, and where labels are by step or pixel, neither does the original's answer there.
Distillation: Hinton, Vinyals and Dean (arXiv 1503.02531), with its factor T^2 that keeps the
gradients' size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from petra_deploy.core.errors import Problem
from petra_deploy.core.scores import agree_by_class, class_axis
from petra_deploy.core.workload import MetricSpec

Array = NDArray[Any]
Sort = Literal["classes", "yes_no", "values", "whole"]
Distance = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | None], Tensor]

_CLASS_METRICS = ("accuracy", "f1", "auc")
_VALUE_METRICS = ("mse", "mae", "rmse", "r2", "cosine")
_PEEK = 4096  # rows looked at to tell sorts and variances
_TINY = 1e-6
_SURE = 15.0  # a logit as good as certain


@dataclass(frozen=True)
class Weights:
    distil: float  # of the distance from the original
    labels: float  # of the distance from the labels
    temperature: float


@dataclass(frozen=True)
class Output:
    """What one output is. `axis` is that of the classes, counted from the end or 1."""

    sort: Sort
    axis: int = -1
    probabilities: bool = False  # the model ends in softmax or sigmoid itself
    variance: float = 1.0
    labelled: bool = False  # the labels can be compared with this output


def distance_for(
    teacher: Sequence[Array], target: Array | None, metric: MetricSpec, weights: Weights
) -> "OutputDistance":
    """The loss for a model with these outputs. Raises ValueError where nothing can be trained on.

    The loss itself raises Problem("mismatch") for outputs of other shapes than the original's.
    """
    outputs = tuple(describe(values, target if index == 0 else None, metric) for index, values in enumerate(teacher))
    if all(output.sort == "whole" for output in outputs):
        raise ValueError("every output is of whole numbers, through which no gradient passes")

    return OutputDistance(outputs, weights)


@dataclass(frozen=True)
class OutputDistance:
    """The weighted sum of two terms: the mean distance from the original's outputs, and from the labels."""

    outputs: tuple[Output, ...]
    weights: Weights

    def __call__(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        found = list(self.terms(ours, theirs, labels).values())
        return torch.stack(found).sum() if found else torch.zeros((), device=ours[0].device)

    def terms(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Each times its weight; a term of weight 0 is left out."""
        if [a.shape for a in ours] != [b.shape for b in theirs]:
            shapes = [[tuple(t.shape) for t in tensors] for tensors in (ours, theirs)]
            raise Problem("mismatch", f"the outputs have shapes {shapes[0]}, the original's {shapes[1]}")
        weights, terms, found = self.weights, [], {}
        for index, (output, a, b) in enumerate(zip(self.outputs, ours, theirs, strict=True)):
            if output.sort != "whole" and weights.distil:
                judged = labels if index == 0 and output.labelled else None
                terms.append(weights.distil * from_original(output, a, b.to(a.dtype), weights.temperature, judged))
        if terms:
            found["original"] = torch.stack(terms).mean()
        if labels is not None and self.outputs[0].labelled and weights.labels:
            found["labels"] = weights.labels * from_labels(self.outputs[0], ours[0], labels)
        return found


def describe(values: Array, target: Array | None, metric: MetricSpec) -> Output:
    """What sort of output this is, by the original's values, its labels and the metric."""
    values = np.asarray(values[:_PEEK])
    if not np.issubdtype(values.dtype, np.floating):
        return Output("whole")
    labels = None if target is None else np.asarray(target[:_PEEK])
    axis = _class_axis(values, labels, metric)
    if axis is not None:
        sums = values.sum(axis=axis)
        probabilities = bool(values.min() >= 0 and np.allclose(sums, 1, atol=1e-3))
        labelled = labels is not None and labels.shape == values.shape[:axis] + values.shape[axis + 1 :]
        return Output("classes", axis, probabilities, labelled=labelled)
    if _yes_no(values, labels, metric):
        probabilities = bool(values.min() >= 0 and values.max() <= 1)
        return Output("yes_no", probabilities=probabilities, labelled=labels is not None)
    same = labels is not None and labels.size == values.size and metric.name in _VALUE_METRICS
    return Output("values", variance=max(float(values.astype(np.float64).var()), 1e-12), labelled=same)


def from_original(
    output: Output, ours: Tensor, theirs: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Mean distance of a batch of outputs from the original's, without the steps that `labels` leave out."""
    if output.sort == "classes":
        p = F.log_softmax(_logits(output, theirs) / temperature, dim=output.axis)
        q = F.log_softmax(_logits(output, ours) / temperature, dim=output.axis)
        each = (p.exp() * (p - q)).sum(dim=output.axis)
        if labels is not None and labels.ndim > 1:
            counted = labels >= 0
            return (each * counted).sum() / counted.sum().clamp_min(1) * temperature**2
        return each.mean() * temperature**2
    if output.sort == "yes_no":
        p = torch.sigmoid(_logits(output, theirs) / temperature)
        q = _logits(output, ours) / temperature
        entropy = F.binary_cross_entropy(p, p)  # taken off, so that equal outputs are at distance 0
        return (F.binary_cross_entropy_with_logits(q, p) - entropy) * temperature**2
    return F.mse_loss(ours, theirs) / output.variance


def from_labels(output: Output, ours: Tensor, labels: Tensor) -> Tensor:
    """Mean distance of a batch of first outputs from the labels."""
    if output.sort == "classes":
        scores = _logits(output, ours).movedim(output.axis, 1)
        counted = labels >= 0
        total = F.cross_entropy(scores, labels.long().masked_fill(~counted, -100), ignore_index=-100, reduction="sum")
        return total / counted.sum().clamp_min(1)  # a batch without any is no reason to diverge
    labels = labels.to(ours.dtype).reshape(ours.shape)
    if output.sort == "yes_no":
        return F.binary_cross_entropy_with_logits(_logits(output, ours), labels)
    return F.mse_loss(ours, labels) / output.variance


def drawn(output: Output, values: Tensor, generator: torch.Generator) -> Tensor:
    """An answer drawn from what the model itself holds likely, in the form of its outputs; on the CPU.

    A class or a yes by its probability; a number with the outputs' variance around what was said. Against
    its own plain answers a model has no gradient; against drawn ones that of the Fisher information
    (Kunstner, Balles and Hennig, arXiv 1905.12558).
    """
    if output.sort == "values":
        return values + math.sqrt(output.variance) * torch.randn(values.shape, generator=generator).to(values.dtype)
    logits = _logits(output, values)
    if output.sort == "yes_no":
        sure = torch.bernoulli(torch.sigmoid(logits), generator=generator)
    else:
        shares = logits.softmax(output.axis).movedim(output.axis, -1)
        picked = torch.multinomial(shares.reshape(-1, shares.shape[-1]), 1, generator=generator)
        sure = F.one_hot(picked.reshape(shares.shape[:-1]), shares.shape[-1]).movedim(-1, output.axis).to(values.dtype)
    certain: Tensor = sure if output.probabilities else _SURE * (2 * sure - 1)
    return certain


def _logits(output: Output, values: Tensor) -> Tensor:
    if not output.probabilities:
        return values
    if output.sort == "classes":
        return values.clamp_min(_TINY).log()
    return torch.logit(values, eps=_TINY)


def _class_axis(values: Array, labels: Array | None, metric: MetricSpec) -> int | None:
    """The axis of the classes, None where the outputs are no scores of several classes."""
    if labels is not None and np.issubdtype(labels.dtype, np.integer):
        axis = class_axis(values.shape, labels.shape)
        if axis is not None and values.shape[axis] > 1:
            return axis if labels.max(initial=0) < values.shape[axis] else None
    classlike = metric.name in _CLASS_METRICS or metric.name == "agreement"
    return values.ndim - 1 if classlike and labels is None and agree_by_class(values) else None


def _yes_no(values: Array, labels: Array | None, metric: MetricSpec) -> bool:
    """Whether each number is the score of one yes or no (one column, or several labels a row)."""
    if labels is None:
        return metric.name in _CLASS_METRICS and (values.ndim == 1 or values.shape[-1] == 1)
    if labels.size != values.size or metric.name in _VALUE_METRICS:
        return False
    return bool(np.isin(labels, (0, 1)).all())
