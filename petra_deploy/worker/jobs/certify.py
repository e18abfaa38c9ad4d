"""Certify: on which processors the accuracy of an engine holds, by the arithmetic of each.

The graph is the one that ONNX Runtime runs, after its fusions. First a bound: where no pair of weights
can leave 16 bits, all processors compute the same and nothing is run. Else rows of calibration data
go through the graph twice, layers at risk computed here with sums that saturate (AVX2, AVX-512
without VNNI) and with exact ones (VNNI, AMX, Arm); what follows them sees their outputs. A processor
holds where the metric falls no more than is allowed beyond what was measured.
"""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from petra_deploy.core import cpus, machine
from petra_deploy.core.drop import paired_drop
from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Certify
from petra_deploy.core.outcome import Certified, OnCpu
from petra_deploy.core.samples import Samples
from petra_deploy.worker.artifact import integers
from petra_deploy.worker.artifact.pieces import Compute, Pieces, expand
from petra_deploy.worker.backends import onnxruntime as backend
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.score import outputs_of, simple, targets_of

Arrays = dict[str, NDArray[Any]]


def run(job: Certify, context: Context) -> Certified:
    """Raises Problem "unsupported" for another runtime, and where the graph cannot be run in pieces."""
    if job.engine.backend != "onnxruntime":
        raise Problem("unsupported", f"only ONNX Runtime's sums are known, not those of {job.engine.backend}")
    model = _fused(context.store.path(job.engine.key) / "model.onnx", job.engine.settings)
    found = Certified(cpus={}, rows=0, metric=job.metric.name, allowed_points=job.allowed_points)
    risky = [layer for layer in integers.find(model) if layer.risky]
    if not risky:
        same = OnCpu(holds=True, why="no sum of its weights can leave 16 bits, so all processors compute the same")
        return replace(found, cpus=dict.fromkeys(cpus.CPUS, same))
    unknown = [f"{layer.name} may saturate, and {layer.why}" for layer in risky if layer.why]
    if unknown:
        own = cpus.alike(cpus.kind(job.instructions))
        return replace(found, cpus={cpu: _unknown(cpu in own, unknown) for cpu in cpus.CPUS})
    samples = Samples.open(context.store.path(job.split.key)).first(job.rows)
    cut, counts = _outputs(job, model, risky, samples, saturate=True)
    native = cpus.kind(machine.instructions()) in cpus.EXACT  # here ONNX Runtime's own kernels are exact, and faster
    exact = _outputs(job, model, [] if native else risky, samples, saturate=False)[0] if counts else cut
    return replace(found, rows=len(samples), cpus=_judged(job, samples, exact, cut, counts))


def _fused(path: Path, settings: dict[str, object]) -> onnx.ModelProto:
    """The graph after ONNX Runtime's fusions, in the layout of ONNX (which changes no integer sum)."""
    level = settings.get("optimization", "all")
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        chosen = {**settings, "optimization": "extended" if level == "all" else level}
        backend.Session(path, chosen, optimized=optimized).close()
        model = onnx.load(str(optimized))
    expand(model)
    return model


def _outputs(
    job: Certify, model: onnx.ModelProto, risky: list[integers.Layer], samples: Samples, *, saturate: bool
) -> tuple[Arrays, dict[str, int]]:
    """The outputs of all rows, and the sums that saturated by node."""
    pieces = Pieces(model, [layer.node.output[0] for layer in risky], machine.usable_cores())
    counts: dict[str, int] = {}

    def compute(layer: integers.Layer, values: Arrays) -> NDArray[Any]:
        output, count = integers.evaluate(layer, values, saturate=saturate)
        counts[layer.name] = counts.get(layer.name, 0) + count
        return output

    computed: dict[str, Compute] = {layer.node.output[0]: functools.partial(compute, layer) for layer in risky}
    taken = {value.name for value in model.graph.input}

    def answer(feeds: Arrays) -> list[NDArray[Any]]:
        return pieces.run({name: values for name, values in feeds.items() if name in taken}, computed)

    outputs = outputs_of(answer, job.engine.signature, samples)
    return outputs, {name: count for name, count in counts.items() if count}


def _judged(job: Certify, samples: Samples, exact: Arrays, cut: Arrays, counts: dict[str, int]) -> dict[str, OnCpu]:
    targets = targets_of(job.metric, "calibration", samples, exact)
    fall = paired_drop(job.metric, simple(exact), simple(cut), targets)[0].known()
    differ = np.zeros(len(samples), bool)
    for name, values in exact.items():
        differ |= (values != cut[name]).reshape(len(values), -1).any(axis=1)
    largest = max(float(np.abs(exact[n].astype(np.float64) - cut[n]).max(initial=0.0)) for n in exact)
    own = cpus.kind(job.instructions)
    here = fall if own in cpus.SATURATING else 0.0  # below exact sums, where the engine was scored
    found = {}
    for cpu in cpus.CPUS:
        saturating = cpu in cpus.SATURATING
        beyond = (fall if saturating else 0.0) - here
        holds = beyond <= job.allowed_points
        why = (
            "no sum saturated" if saturating and not counts
            else f"{job.metric.name} falls by {beyond:.2f} points beyond what was measured; "
            f"{job.allowed_points:.2f} are left"
        )  # fmt: skip
        found[cpu] = OnCpu(
            holds=holds, why=why, drop_points=fall if saturating else 0.0,
            largest_difference=largest if saturating else 0.0, rows=int(differ.sum()) if saturating else 0,
            saturated=counts if saturating else {},
        )  # fmt: skip
    return found


def _unknown(measured: bool, reasons: list[str]) -> OnCpu:
    why = "the metric was measured with these sums" if measured else "; ".join(reasons)
    return OnCpu(holds=measured, why=why)
