"""Replace Linear and convolution layers by two thin ones of low rank, where that was measured to be faster.

A matrix of m x n becomes m x r and r x n; a convolution keeps its window on the way to r channels and has a 1x1
after it. Attention projections are Linear layers like others. Which rank a layer gets is said by `levels`: the
share of its `select` that is given up (worker/model/rank.py defines each). Source: Jaderberg and others (arXiv
1405.3866); "explained_variance" also takes its factors from the outputs (Zhang and others, arXiv 1505.06798).

    Step(technique="low_rank", options={"levels": {"fc": 0.2}, "select": "energy", "round_to": 16})

Inspect times each layer against its factors by ONNX Runtime (worker/measure/factors.py); `worth` holds the largest
rank that paid there, so `apply` times nothing and gives the same result everywhere (docs/decisions/0013).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Lt
from torch import nn

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import rank
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.techniques import _factoring

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "matrix"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    levels: dict[str, Annotated[float, Ge(0), Lt(1)]]  # layer -> share given up; 0 leaves it as it is
    select: rank.Rule = "energy"  # what the share is of
    round_to: Annotated[int, Ge(1)] = 1  # ranks are the next multiple of this
    worth: dict[str, Annotated[int, Ge(0)]] = field(default_factory=dict)  # layer -> largest rank that pays


def groups(look: Look) -> Found:
    """The layers that run faster as two; a group's width is the largest rank at which they do."""
    return _factoring.offered(look, KIND, "channels", _accepts)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one layer has half of the rank that pays."""
    return functools.partial(_factoring.halved, model)


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    return _factoring.no_reason(layout, target, KIND, "Linear or convolution layer")


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"levels": Knob.real(0.0, 0.95, per=KIND, strength=True), "select": Knob.choice(*rank.RULES)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": target.channel_step, "worth": {g.name: g.width for g in layout.of_kind(KIND)}}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with two factors in place of each named layer, where they are smaller and pay.

    Facts: `ranks` {layer: [full rank, rank, parameters before, after]}, `kept` {layer: why it stayed}. Raises
    Problem("unsupported") for layers that cannot be factored, and where the model does not run with the factors.
    """
    make = _factoring.channel_maker(model, options.levels, options.select, options.round_to, tools, _accepts)
    example = example_of(tools.calibration, tools.signature)
    small, done = _factoring.exchange(model, options.levels, options.worth, example, _accepts, make)
    return Applied(small, facts=_factoring.facts(done, model, small))


def _accepts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
