"""Recovery training, as the step `recover` does it and as pruning in rounds does it between them."""

import math
from dataclasses import dataclass

from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Tools
from petra_deploy.worker.training.loop import Course, Trained, fit
from petra_deploy.worker.training.losses import Weights, distance_for
from petra_deploy.worker.training.samples import Rows, batch_size

DEFAULTS = Weights(distil=1.0, labels=0.5, temperature=2.0)


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long and how fast; `epochs` before the fidelity's share is taken."""

    epochs: float
    lr: float = 5e-3
    batch_size: int | None = None  # None: by the number of rows, 16 to 128
    weight_decay: float = 0.01


def recovered(model: nn.Module, length: Length, tools: Tools, weights: Weights = DEFAULTS) -> Trained:
    """Train `model` in place towards the original's answers and the labels.

    Raises Problem: "unsupported" where there is nothing to train on, "diverged" where the loss
    is no finite number, "mismatch" where the outputs are not those of the original.
    """
    if tools.train is None or not len(tools.train):
        raise Problem("unsupported", "recovery training needs training rows, and there are none",
                      "give --data with at least a few hundred rows, or leave the step out")  # fmt: skip
    teacher = tools.teacher_outputs()
    try:
        rows = Rows.of(tools.train, [spec.name for spec in tools.signature.inputs], teacher)
        distance = distance_for(teacher, tools.train.target, tools.metric, weights)
    except ValueError as error:
        raise Problem("unsupported", f"recovery training: {error}") from error
    course = Course(
        epochs=length.epochs * tools.epochs_share,
        lr=length.lr,
        batch_size=batch_size(tools.signature, length.batch_size or fitting(len(rows))),
        weight_decay=length.weight_decay,
        device=tools.device,
    )
    return fit(model, rows, distance, course, seed=tools.seed, log=tools.log)


def fitting(rows: int) -> int:
    """The batch size, a power of two, that leaves at least 64 steps an epoch; 16 to 128.

    Few rows need small batches: a thousand rows in sixteens are back to the original's accuracy
    in half of the epochs that they need in thirty-twos, and an epoch takes as long.
    """
    return min(max(16, 1 << int(math.log2(max(rows / 64, 1)))), 128)
