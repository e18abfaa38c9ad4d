"""Replace 2D convolutions of k x k by k x 1 and 1 x k with few channels between, where that was measured to be faster.

Unlike the channel form (low_rank) it keeps a window in each factor; at full rank it is the same function. Which rank a
layer gets is said by `levels`, the share of its `select` that is given up. Source: Jaderberg, Vedaldi and Zisserman,
"Speeding up convolutional neural networks with low rank expansions" (arXiv 1405.3866), section 2.2.

    Step(technique="low_rank_spatial", options={"levels": {"conv2": 0.2}, "select": "energy"})
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from torch import nn

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, rank, surgery
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.factored import in_space, space_matrix, svd
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.techniques import _factoring

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "kernel"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    levels: dict[str, Annotated[float, Ge(0), Lt(1)]]  # layer -> share given up; 0 leaves it as it is
    select: Literal["ratio", "energy", "quantile"] = "energy"  # what the share is of (worker/model/rank.py)
    round_to: Annotated[int, Ge(1)] = 1  # ranks are the next multiple of this
    worth: dict[str, Annotated[int, Ge(0)]] = field(default_factory=dict)  # layer -> largest rank that pays


def groups(look: Look) -> Found:
    """The convolutions that run faster as two; a group's width is the largest rank at which they do."""
    return _factoring.offered(look, KIND, "space", _accepts)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` in which one layer has half of the rank that pays."""

    def factored(group: Group) -> nn.Module:
        small = surgery.twin(model)
        layer: Any = adapter.submodule(small, group.name)
        left, _, right = svd(space_matrix(layer))
        half = max(group.width // 2, 1)
        adapter.replace(small, group.name, in_space(layer, left[:, :half], right[:half]))
        return small

    return factored


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    return _factoring.no_reason(layout, target, KIND, "2D convolution with a window in both directions")


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "levels": Knob.real(0.0, 0.95, per=KIND, strength=True),
        "select": Knob.choice("ratio", "energy", "quantile"),
    }


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"round_to": target.channel_step, "worth": {g.name: g.width for g in layout.of_kind(KIND)}}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with two factors in place of each named convolution, where they are smaller and pay.

    Facts and errors as those of low_rank.
    """

    def make(name: str, layer: Any, level: float) -> _factoring.Made | str:
        values = space_matrix(layer)
        left, singular, right = svd(values)
        full = min(values.shape)
        chosen = rank.rounded(rank.kept(singular, options.select, level), options.round_to, full)
        (high, wide), across = layer.kernel_size, layer.stride[1]
        cost = chosen * (layer.in_channels * high * across + layer.out_channels * wide)
        if cost >= layer.weight.numel():
            return f"at rank {chosen} its factors have no fewer multiply-accumulates"
        return in_space(layer, left[:, :chosen], right[:chosen]), full, chosen

    example = example_of(tools.calibration, tools.signature)
    small, done = _factoring.exchange(model, options.levels, options.worth, example, _accepts, make)
    return Applied(small, facts=_factoring.facts(done, model, small))


def _accepts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1
