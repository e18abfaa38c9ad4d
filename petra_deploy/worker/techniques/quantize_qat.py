"""Quantization-aware training: static INT8 whose rounding the weights were trained through.

    Step(technique="quantize_qat", options={"epochs": 3, "lr": 1e-3})

The module is exported and calibrated as by quantize_inc; then it is trained towards the original's answers and the
labels, as by recover, with weights and activations rounded in each step, and converted to the same kind of graph.
Islands of float are found before training. `rule`: "scale_adjusted" is for layers that no normalisation follows (arXiv
1912.10207); it forgets the scale that their weights had, so that only the training brings the answers back.
Sources: Jacob et al., arXiv 1712.05877; Jin, Yang and Liao, arXiv 1912.10207; neural-compressor 3.10 and torchao 0.18.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import masks, precision
from petra_deploy.worker.quiet import cause, quiet
from petra_deploy.worker.techniques import _inc_graphs as graphs
from petra_deploy.worker.training import recovery

PHASE = Phase.QUANTIZE
ORDER = 6
ACTS_ON: ActsOn = "module"
NEEDS_TRAINING = True
OFF = (
    "by itself it was no faster than quantize_inc and no more accurate in six families (docs/families.md), and each "
    "candidate trains anew"
)
_FOLLOWED = 0.5  # share of the training in which ranges of activations follow the batches


@dataclass(frozen=True, kw_only=True)
class Options(graphs.Static):
    epochs: Annotated[float, Ge(0)] = 3.0  # a fraction sees that share of the rows
    lr: Annotated[float, Gt(0), Le(1)] = 1e-3  # the highest rate, after the warm-up
    rule: Literal["plain", "scale_adjusted"] = "plain"  # what weights of layers without normalisation obey


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if all(not spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.outputs):
        return ("every output is of whole numbers, through which no gradient passes",)
    return graphs.obstacles(layout, target)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "epochs": Knob.integer(1, 10, log=True), "lr": Knob.real(1e-4, 5e-3, log=True),
        "granularity": Knob.choice("channel", "tensor"), **precision.knob(layout),
    }  # fmt: skip


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return graphs.fixed(layout, target)


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return `model` as a quantized torch.fx graph, how many of its operators are int8, and how its training went.

    Raises Problem: "unsupported" where torch.export cannot take the model, nothing in it became int8, `keep_float`
    names a module that it never had, or there is nothing to train on; "diverged" as training does.
    """
    source = graphs.opened(model, options, tools)
    untrained = graphs.relieved(source, options, tools) if options.islands else None
    with quiet():
        from petra_deploy.worker.techniques import _inc_training as fake

    rescaled = fake.unnormalised(source.exported) if options.rule == "scale_adjusted" else ()
    facts: dict[str, object] = {"rule": options.rule}

    def before(prepared: torch.fx.GraphModule) -> None:
        facts["rescaled"] = fake.rescale(prepared, rescaled)

    def train(prepared: torch.fx.GraphModule) -> None:
        facts.update(_trained(prepared, model, options, tools, rescaled))

    made = graphs.quantized(
        source, options, tools, untrained.kept if untrained else (), before=before if rescaled else None, after=train
    )
    if untrained is not None:
        found = untrained.facts()
        facts["sqnr_db_untrained"] = found.pop("sqnr_db")
        facts |= found
    return Applied(made, facts={**graphs.facts_of(made, source, options, tools), **facts})


def _trained(
    prepared: torch.fx.GraphModule, model: torch.nn.Module, options: Options, tools: Tools, rescaled: tuple[str, ...]
) -> dict[str, object]:
    """Train a calibrated graph in place; what there is to say of it."""
    from petra_deploy.worker.techniques import _inc_training as fake

    rounding = fake.Rounding.inserted(prepared, rescaled)
    known = dict(prepared.named_parameters())
    for path, _, kept in masks.held(model):  # zeros outlive this training too
        if path not in known:
            raise Problem("unsupported", f"the zeros of {path} cannot be held: the exported program has no such weight")
        owner, _, name = path.rpartition(".")
        masks.remember(prepared.get_submodule(owner), name, kept.cpu())
    recipe = recovery.Recipe(epochs=options.epochs, lr=options.lr)
    rows = _FOLLOWED * options.epochs * tools.epochs_share * len(tools.train or ())
    trainee = fake.Trainee(rounding, rows)
    try:
        with torch.enable_grad():
            facts = recovery.train(trainee, recipe, dataclasses.replace(tools, device="cpu")).facts
    except RuntimeError as error:  # of autograd: an operator of the exported program has no gradient
        raise Problem("unsupported", f"the exported program cannot be trained: {cause(error)}",
                      "quantize_inc quantizes without training") from error  # fmt: skip
    rounding.removed()
    return facts
