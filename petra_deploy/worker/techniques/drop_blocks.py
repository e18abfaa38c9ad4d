"""Remove whole blocks: residual blocks and encoder layers whose input can stand for their output.

Depth costs latency that no narrower layer wins back: each block is several kernels, however small.
Blocks are replaced by a pass-through, so the names of all other layers stay as they are.
Source: measured here (docs/measurements.md); compare LayerDrop, arXiv 1909.11556.

    Step(technique="drop_blocks", options={"blocks": ["stages.0.1", "stages.3.1"]})
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, blocks, surgery
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors, Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "block"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    blocks: tuple[str, ...]  # names of blocks, as named_modules() gives them


def groups(look: Look) -> Found:
    """The blocks that the model runs without."""
    found = blocks.removable(look.model, look.trial)
    return Found(tuple(look.group(name, KIND, 1, [name]) for name in found.names), found.refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` without one block."""

    def without(group: Group) -> nn.Module:
        small = surgery.twin(model)
        blocks.take_out(small, [group.name], example)
        return small

    return without


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind("block"):
        return ()
    return ("the model has no block whose input has the shape of its output",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"blocks": Knob.subset("block", ladder=(0.0, 0.3, 0.5, 0.75, 1.0))}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` without the named blocks; one in a stage that is gone is passed over.

    Raises Problem("unsupported") for a name that the model does not have, and where it does not run
    without them, or gives other shapes.
    """
    known = {name for name, _ in adapter.submodules(model)}
    present = [name for name in options.blocks if not blocks.gone(model, name)]
    if missing := [name for name in present if name not in known]:
        raise Problem("unsupported", f"the model has no block {missing[0]!r}")
    example = example_of(tools.calibration, tools.signature)
    small = surgery.twin(model)
    blocks.take_out(small, present, example)
    if reason := Trial(model, example).breaks(small):
        raise Problem("unsupported", f"without {', '.join(present)} {reason}")
    small = surgery.own(small)
    return Applied(
        small,
        facts={
            "dropped": present,
            "gone": sorted(set(options.blocks) - set(present)),
            "parameters": [surgery.size(model), surgery.size(small)],
        },
    )
