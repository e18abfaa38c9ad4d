"""Where only one position of a sequence is read, compute that one: the last layer of an encoder, mostly.

A classifier that reads its first token (`x[:, 0]`) makes its last layer compute all others for nothing: their
queries, products and feed-forward parts. The selection moves up to where every position is needed, as keys
and values. The numbers are the same; an encoder of two layers was 1.5 times as fast, one of six 1.1 times
(docs/measurements.md). Source: measured here.

    Step(technique="select_early", options={})
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.artifact import selection
from petra_deploy.worker.artifact.inferred import inferred
from petra_deploy.worker.techniques._rewritten import rewritten

PHASE = Phase.REWRITE  # before the quantizers of graphs, which then see fewer rows
ACTS_ON: ActsOn = "graph"
SETTLED = True  # less is computed, and nothing else changes
_LAYERS = ("LayerNorm", "RMSNorm", "MultiheadAttention", "TransformerEncoderLayer")


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    pass


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.form == "module":
        return () if any(name in layout.operators for name in _LAYERS) else ("the model has no transformer layer",)
    selects = any(name in layout.operators for name in ("Gather", "Slice"))
    return () if selects and "Softmax" in layout.operators else ("the graph has no attention of which one row is read",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a graph that selects first; of the same graph where no product becomes smaller.

    Raises Problem("mismatch") where the graph then answers anything else.
    """
    early = inferred(model)
    counts = selection.select_early(early)
    if not counts["products"]:
        path = tools.scratch / "model.onnx"
        shutil.copyfile(model, path)
        return Applied(path, facts={"products": 0})
    path, same = rewritten(early, model, tools)
    return Applied(path, facts={**counts, "parity": same})
