"""The end of every exact rewrite of a graph: the file, held to answer what the one before it answered."""

from pathlib import Path

import onnx_ir as ir

from petra_deploy.core.extension import Tools
from petra_deploy.worker.artifact import graph
from petra_deploy.worker.model import parity


def rewritten(model: ir.Model, before: Path, tools: Tools) -> tuple[Path, dict[str, object]]:
    """Where `model` now lies, and how its answers compare. Raises Problem("mismatch") where they are others."""
    path = tools.scratch / "model.onnx"
    graph.save(model, path)
    batches = parity.probes(tools.calibration, tools.signature)
    limit = parity.CLOSE if graph.quantized(model) else parity.EXACT  # an ulp may turn over a rounding to int8
    expected, found = (parity.run_file(file, batches) for file in (before, path))
    return path, parity.compare(expected, found, tools.signature, limit)
