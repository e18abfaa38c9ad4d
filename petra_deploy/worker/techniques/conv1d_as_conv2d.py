"""Compute float convolutions of one dimension by the kernels of two: the same numbers, 1.2 to 2 times as fast.

ONNX Runtime keeps the channels of a Conv2d in blocks that fit its vector registers; a Conv1d it unfolds
into a matrix product, every time. A step of height one makes the one into the other. It runs last:
int8 convolutions stay as they are, since their kernels take one dimension already and lose
up to a tenth from the second, and so do the other orientation, (steps, 1), and what is not float.
Source: measured here (docs/measurements.md, "Runtime settings and rewrites").

    Step(technique="conv1d_as_conv2d", options={})
"""

from dataclasses import dataclass
from pathlib import Path

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.artifact import planar
from petra_deploy.worker.artifact.inferred import inferred
from petra_deploy.worker.techniques._rewritten import rewritten

PHASE = Phase.FINISH  # after the quantizers: whatever they left in float
ACTS_ON: ActsOn = "graph"
SETTLED = True  # no network was seen that it made slower


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    pass


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.device != "cpu":
        return ("it is for processors; GPUs have kernels for one dimension",)
    if layout.form == "module":
        return () if "Conv1d" in layout.operators else ("the model has no Conv1d layer",)
    if "Conv" not in layout.operators or all(len(spec.shape) > 3 for spec in layout.signature.inputs):
        return ("the graph has no convolution of one dimension",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of the rewritten graph, and how many convolutions are now of two dimensions.

    Raises Problem("mismatch") where the graph then answers anything else.
    """
    planes = inferred(model)
    counts = planar.widen(planes)
    path, same = rewritten(planes, model, tools)
    return Applied(path, facts={**counts, "parity": same})
