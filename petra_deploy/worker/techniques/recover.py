"""Recovery training: a shrunken model learns to answer as the original did, and as the labels say.

The original is the teacher; its outputs over the training rows are computed once a run and shared
by all candidates, so an epoch costs what the small model costs. Labels help where there are any
and are not needed. Everything that can be asked of the training is a field of
worker/training/recovery.py: Recipe. Source: knowledge distillation, arXiv 1503.02531.

    Step(technique="recover", options={"epochs": 20, "lr": 3e-3})
"""

from dataclasses import dataclass

import torch

from petra_deploy.core.extension import Applied, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.training.recovery import Recipe, recovered

PHASE = Phase.RECOVER
ACTS_ON: ActsOn = "module"
NEEDS_TRAINING = True  # Inspect leaves it out where there are no training rows


@dataclass(frozen=True, kw_only=True)
class Options(Recipe):
    """All that a training can be told: epochs, rate, terms of the loss, LoRA, averaging, early stopping."""


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if all(not spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.outputs):
        return ("every output is of whole numbers, through which no gradient passes",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    knobs = {
        "epochs": Knob.integer(1, 400, log=True, ladder=(5, 10, 20, 40)),
        "lr": Knob.real(1e-4, 1e-2, log=True, ladder=(2e-3, 3e-3, 5e-3, 6e-3)),
    }
    floating = all(spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.inputs)
    return {**knobs, "augment": Knob.integer(0, 2)} if floating else knobs


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a trained copy of `model`, on the CPU and in eval mode. Raises Problem as `recovered` does."""
    model, facts = recovered(model, options, tools)
    return Applied(model, facts=facts)
