"""Recovery training: a shrunken model learns to answer as the original did, and as the labels say.

The original is the teacher; its outputs over the training rows are computed once a run and shared
by all candidates, so an epoch costs what the small model costs. Labels help where there are any
and are not needed. Source: knowledge distillation, arXiv 1503.02531.

    Step(technique="recover", options={"epochs": 20, "lr": 3e-3})
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.training.loop import Course, fit
from petra_deploy.worker.training.losses import Weights, distance_for
from petra_deploy.worker.training.samples import Rows, batch_size

PHASE = Phase.RECOVER
ACTS_ON: ActsOn = "module"
NEEDS_TRAINING = True  # Inspect leaves it out where there are no training rows


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    epochs: Annotated[float, Ge(0)] = 20.0  # a fraction sees that share of the rows
    lr: Annotated[float, Gt(0), Le(1)] = 5e-3  # the highest rate, after the warm-up
    batch_size: Annotated[int, Ge(2)] | None = None  # None: by the number of rows, 16 to 128
    weight_decay: Annotated[float, Ge(0)] = 0.01
    distil: Annotated[float, Ge(0)] = 1.0  # weight of the distance from the original
    labels: Annotated[float, Ge(0)] = 0.5  # weight of the distance from the labels
    temperature: Annotated[float, Gt(0)] = 2.0


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if all(not spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.outputs):
        return ("every output is of whole numbers, through which no gradient passes",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "epochs": Knob.integer(1, 200, log=True, ladder=(5, 10, 20, 40)),
        "lr": Knob.real(1e-4, 1e-2, log=True, ladder=(2e-3, 3e-3, 5e-3, 6e-3)),
    }


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a trained copy of `model`, on the CPU and in eval mode.

    Raises Problem: "unsupported" where there is nothing to train on, "diverged" where the loss
    is no finite number, "mismatch" where the outputs are not those of the original.
    """
    if tools.train is None or not len(tools.train):
        raise Problem("unsupported", "recovery training needs training rows, and there are none",
                      "give --data with at least a few hundred rows, or leave the step out")  # fmt: skip
    teacher = tools.teacher_outputs()
    try:
        rows = Rows.of(tools.train, [spec.name for spec in tools.signature.inputs], teacher)
        weights = Weights(options.distil, options.labels, options.temperature)
        distance = distance_for(teacher, tools.train.target, tools.metric, weights)
    except ValueError as error:
        raise Problem("unsupported", f"recovery training: {error}") from error
    course = Course(
        epochs=options.epochs * tools.epochs_share,
        lr=options.lr,
        batch_size=batch_size(tools.signature, options.batch_size or _fitting(len(rows))),
        weight_decay=options.weight_decay,
        device=tools.device,
    )
    start = time.monotonic()
    model = copy.deepcopy(model)
    trained = fit(model, rows, distance, course, seed=tools.seed, log=tools.log)
    facts: dict[str, object] = {
        "epochs": course.epochs,
        "steps": trained.steps,
        "losses": [float(f"{loss:.4g}") for loss in trained.losses],
        "seconds": round(time.monotonic() - start, 2),
    }
    return Applied(model, facts=facts)


def _fitting(rows: int) -> int:
    """The batch size, a power of two, that leaves at least 64 steps an epoch; 16 to 128.

    Few rows need small batches: a thousand rows in sixteens are back to the original's accuracy
    in half of the epochs that they need in thirty-twos, and an epoch takes as long.
    """
    return min(max(16, 1 << int(math.log2(max(rows / 64, 1)))), 128)
