"""Static INT8 by Intel Neural Compressor, laid out so that ONNX Runtime fuses all of it.

INC exports the module (torch.export), observes it on calibration rows, and writes Q/DQ pairs with
the scales it found: activations uint8, weights int8 per channel, from the range ("minmax") or
from a histogram ("kl"). Embeddings and LSTM weights become int8 too. The result is a torch.fx graph
that `worker/model/export.py` turns into QDQ ONNX. Sources: neural-compressor 3.10, PT2E static
quantization; Jacob et al., arXiv 1712.05877.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from petra_deploy.core.extension import Applied, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import precision
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.techniques import _inc_graphs as graphs

PHASE = Phase.QUANTIZE
ACTS_ON: ActsOn = "module"
KIND = precision.KIND


@dataclass(frozen=True, kw_only=True)
class Options(graphs.Static):
    bias_correction: bool = False  # take the mean error of the rounded weights out of the biases


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    return graphs.obstacles(layout, target)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "algo": Knob.choice("minmax", "kl"), "granularity": Knob.choice("channel", "tensor"), **precision.knob(layout),
    }  # fmt: skip


def groups(look: Look) -> Found:
    """The parts that can be int8 or float each, for every quantizer's `keep_float`."""
    names = precision.parts(look.model)
    why = precision.nothing(look.model)
    return Found(tuple(look.group(name, KIND, 1, [name]) for name in names), {"model": why} if why else {})


def shrinker(model: torch.nn.Module, example: Tensors) -> Callable[[Group], torch.nn.Module]:
    """What gives a copy of `model` with one part rounded to int8."""
    return lambda group: precision.rounded(model, group.name)


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return graphs.fixed(layout, target)


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return `model` as a quantized torch.fx graph, how many of its operators are int8, and how far its answers are.

    Raises Problem("unsupported") where torch.export cannot take the model, nothing in it became int8, or
    `keep_float` names a module that it never had.
    """
    source = graphs.opened(model, options, tools)
    corrected: list[int] = []

    def correct(prepared: torch.fx.GraphModule) -> None:
        from petra_deploy.worker.techniques import _inc_bias

        rows = graphs.batches(tools, min(options.calibration_rows, len(tools.calibration)))
        corrected.append(_inc_bias.correct(prepared, rows))

    relieved = graphs.relieved(source, options, tools, correct if options.bias_correction else None)
    facts = graphs.facts_of(relieved.artifact, source, options, tools)
    if corrected:
        facts["biases_corrected"] = corrected[-1]
    return Applied(relieved.artifact, facts={**facts, **relieved.facts()})
