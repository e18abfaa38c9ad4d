"""Recovery training: a shrunken model learns to answer as the original did, and as the labels say.

The original is the teacher; its outputs over the training rows are computed once a run and shared
by all candidates, so an epoch costs what the small model costs. Labels help where there are any
and are not needed. Source: knowledge distillation, arXiv 1503.02531.

    Step(technique="recover", options={"epochs": 20, "lr": 3e-3})
"""

import copy
import time
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.training.losses import Weights
from petra_deploy.worker.training.recovery import Length, recovered

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
    weights = Weights(options.distil, options.labels, options.temperature)
    length = Length(epochs=options.epochs, lr=options.lr, batch_size=options.batch_size,
                    weight_decay=options.weight_decay)  # fmt: skip
    start = time.monotonic()
    model = copy.deepcopy(model)
    trained = recovered(model, length, tools, weights)
    facts: dict[str, object] = {
        "epochs": options.epochs * tools.epochs_share,
        "steps": trained.steps,
        "losses": [float(f"{loss:.4g}") for loss in trained.losses],
        "seconds": round(time.monotonic() - start, 2),
    }
    return Applied(model, facts=facts)
