"""Refresh BatchNorm statistics on calibration data, after the network around them has changed.

Pruning alters what each later layer receives, yet every BatchNorm still holds the mean and
variance of the old network. A few forward passes set them right: no labels, no gradients,
seconds instead of epochs. Source: adaptive batch normalization, EagleEye (arXiv 2007.02491).
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.training.batchnorm import averaging, tracking
from petra_deploy.worker.training.samples import batch_size

PHASE = Phase.RECOVER
ACTS_ON: ActsOn = "module"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    batches: Annotated[int, Ge(1)] = 8  # calibration batches to average over
    batch_size: Annotated[int, Ge(2)] = 32


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    found = any(name.startswith(("BatchNorm", "SyncBatchNorm")) for name in layout.operators)
    return () if found else ("the model has no BatchNorm layer",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {}  # more batches are never worse, and eight cost next to nothing


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` whose BatchNorm layers describe the inputs they now receive.

    Raises Problem("unsupported") where there are fewer than two calibration rows.
    """
    names = [spec.name for spec in tools.signature.inputs]
    size = batch_size(tools.signature, options.batch_size)
    rows = min(len(tools.calibration), options.batches * size)
    if rows < 2:
        raise Problem("unsupported", "fresh statistics need two calibration rows at least", "leave the step out")
    model = copy.deepcopy(model).eval()
    norms = tracking(model)
    with torch.no_grad(), averaging(norms):
        for feeds, _ in tools.calibration.first(_whole(rows, size)).batches(size):
            model(*(torch.from_numpy(feeds[name]) for name in names))
    return Applied(model, facts={"norms_refreshed": len(norms)})


def _whole(rows: int, size: int) -> int:
    """Rows of full batches only, since every batch counts once; of one smaller batch if that is all."""
    return rows if rows < size else rows - rows % size
