"""Prompt tuning: a few trained tokens in front of a transformer encoder's own, all weights as they are.

The prompts tell a frozen encoder what is wanted of it; they ship as constants of the graph. Every layer
then sees that many tokens more, which costs latency. Source: Lester, Al-Rfou and Constant
(arXiv 2104.08691); where prompts go is found by trying: worker/model/prompts.py.

    Step(technique="tune_prompts", options={"tokens": 8, "epochs": 5})
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import prompts, surgery
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Trial
from petra_deploy.worker.training.recovery import Recipe, recovered

PHASE = Phase.RECOVER
ACTS_ON: ActsOn = "module"
NEEDS_TRAINING = True
KIND = "encoder"
OFF = "where it was tried it regained less than training the weights, and prompts cost latency"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    tokens: Annotated[int, Ge(1), Le(256)] = 8
    epochs: Annotated[float, Ge(0)] = 5.0
    lr: Annotated[float, Gt(0), Le(1)] = 1e-2


def groups(look: Look) -> Found:
    """The encoders that take prompts."""
    found, refused = prompts.encoders(look.trial)
    return Found(tuple(look.group(e.name or "model", KIND, e.width, e.layers) for e in found), refused)


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind(KIND):
        if all(not spec.dtype.startswith(("float", "bfloat")) for spec in layout.signature.outputs):
            return ("every output is of whole numbers, through which no gradient passes",)
        return ()
    reasons = layout.refusals(KIND)
    return (f"no encoder takes prompts ({reasons[0]})" if reasons else "the model has no transformer encoder",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "tokens": Knob.integer(1, 16, log=True),
        "epochs": Knob.integer(1, 50, log=True),
        "lr": Knob.real(1e-3, 1e-1, log=True),
    }


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with trained prompts before the tokens of its first encoder.

    Where the encoder's layers have all been dropped, the copy is without prompts, and facts say why. Raises
    Problem("unsupported") where there is no encoder that takes them, and as `recovered` does.
    """
    example = example_of(tools.calibration, tools.signature)
    found, refused = prompts.encoders(Trial(model, example))
    if not found:
        why = next(iter(refused.values()), "there is no encoder whose layers take (rows, tokens, width)")
        if prompts.encoders(Trial(tools.teacher(), example))[0]:
            return Applied(surgery.own(surgery.twin(model)), facts={"passed_over": why})
        raise Problem("unsupported", f"prompts have no place in the model: {why}")
    encoder = found[0]
    prompted = surgery.own(surgery.twin(model))
    prompts.install(prompted, encoder, options.tokens, example, tools.seed)
    recipe = Recipe(epochs=options.epochs, lr=options.lr, weight_decay=0.0)
    prompted, facts = recovered(prompted, recipe, tools, only=[prompts.parameter(prompted, encoder)])
    length = [encoder.length, encoder.length + options.tokens]
    return Applied(prompted, facts={"encoder": encoder.name, "layers": len(encoder.layers), "length": length, **facts})
