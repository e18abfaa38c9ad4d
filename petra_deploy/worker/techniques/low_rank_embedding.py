"""Replace large embedding tables by a narrow table and a Linear layer: a smaller file, at a little time a call.

A table of n codes x d becomes n x r and r x d. Reading a row costs next to nothing, so this is for the file and the
memory, never for latency. Which rank a table gets is said by `levels`, the share of its `select` that is given up;
"explained_variance" counts each code as often as the calibration rows do. Source: ALBERT (arXiv 1909.11942), section
3.1, whose factors are trained from the start; here they come from the trained table.

    Step(technique="low_rank_embedding", options={"levels": {"embed": 0.1}})
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Lt
from torch import nn

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, rank, surgery
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.factored import sound
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.techniques import _factoring

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "table"
OFF = "it makes the file smaller and never the engine faster: for --objective size"
_SHARE = 0.1  # of the model's parameters: a smaller table is not worth a layer more


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    levels: dict[str, Annotated[float, Ge(0), Lt(1)]]  # embedding -> share given up; 0 leaves it as it is
    select: rank.Rule = "energy"  # what the share is of (worker/model/rank.py)
    round_to: Annotated[int, Ge(1)] = 1  # ranks are the next multiple of this


def groups(look: Look) -> Found:
    """The tables that hold a good part of the model's parameters; a group's width is the rank that saves some."""
    names, refused = sound(look.model, look.trial, _accepts)
    found = []
    for name in names:
        layer: Any = adapter.submodule(look.model, name)
        codes, width = layer.weight.shape
        even = (codes * width - 1) // (codes + width + 1)
        if layer.weight.numel() < _SHARE * surgery.size(look.model):
            refused[name] = f"it holds less than {_SHARE:.0%} of the model's parameters"
        elif even < 1:
            refused[name] = "two factors of any rank have no fewer weights than it"
        else:
            found.append(look.group(name, KIND, even, [name]))
    return Found(tuple(found), refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one table has half of the rank that saves something."""
    return functools.partial(_factoring.halved, model)


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind(KIND):
        return ()
    reasons = layout.refusals(KIND)
    return (f"no embedding is worth two factors ({reasons[0]})" if reasons else "the model has no embedding",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"levels": Knob.real(0.0, 0.95, per=KIND, strength=True), "select": Knob.choice(*rank.RULES)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": min(8, target.channel_step)}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with two factors in place of each named embedding, where they are smaller.

    Facts and errors as those of low_rank.
    """
    make = _factoring.channel_maker(model, options.levels, options.select, options.round_to, tools, _accepts)
    example = example_of(tools.calibration, tools.signature)
    small, done = _factoring.exchange(model, options.levels, {}, example, _accepts, make)
    return Applied(small, facts=_factoring.facts(done, model, small))


def _accepts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding)
