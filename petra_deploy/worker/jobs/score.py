"""Score: the metric of the very artifact that ships, on one split, and its drop from the original.

Outputs are kept in the store, so that a later artifact can be paired with them row by row. All
cores are used; the engine's own thread count matters to its speed only.
"""

import json
import linecache
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import machine, metrics, registry
from petra_deploy.core.divergence import divergence
from petra_deploy.core.drop import paired_drop
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Backend
from petra_deploy.core.job import Infer, Scored
from petra_deploy.core.outcome import Score
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import MetricSpec, Signature
from petra_deploy.worker.context import Context

BATCH = 32
Arrays = dict[str, NDArray[Any]]


def run(job: Scored, context: Context) -> Score:
    """The score; with `reference` outputs also the drop. Raises Problem "diverged" on NaN or Inf."""
    samples = Samples.open(context.store.path(job.split.key))
    outputs = infer(job, samples, context) if job.inferred is None else read_outputs(context.store.path(job.inferred))
    reference = None if job.reference is None else read_outputs(context.store.path(job.reference))
    targets = targets_of(job.metric, job.split_name, samples, outputs if reference is None else reference)
    try:
        value = metrics.evaluate(job.metric, simple(outputs), targets)
        score = Score(
            metric=job.metric.name, split=job.split_name, n=len(samples), value=value,
            outputs=context.store.add(lambda folder: write_outputs(outputs, folder)),
        )  # fmt: skip
        if reference is None:
            return score
        drop, drop_error = paired_drop(job.metric, simple(reference), simple(outputs), targets)
        baseline = metrics.evaluate(job.metric, simple(reference), targets)
        apart = divergence(job.metric, simple(reference), simple(outputs), targets)
    except (Problem, MemoryError, OSError):
        raise
    except Exception as error:
        raise Problem("input", _told(job.metric.name, error)) from error
    return replace(score, baseline=baseline, drop=drop, drop_error=drop_error, divergence=apart)


def infer(job: Scored | Infer, samples: Samples, context: Context) -> Arrays:
    """name -> outputs of all rows, by the engine of the job on all cores."""
    backend: Backend = registry.find("backend", job.engine.backend)
    settings = {**job.engine.settings, "threads": machine.usable_cores()}
    with backend.open(context.store.path(job.engine.key), settings) as runner:
        return outputs_of(runner.run, job.engine.signature, samples)


def outputs_of(run: Callable[[Arrays], list[NDArray[Any]]], signature: Signature, samples: Samples) -> Arrays:
    """name -> outputs of all rows, in batches of 32, or of the model's own fixed size."""
    size = BATCH if signature.dynamic_batch else signature.fixed_batch or 1
    names = [spec.name for spec in signature.outputs]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for feeds, _ in samples.batches(size):
        rows = len(next(iter(feeds.values())))
        fed = {spec.name: feeds[spec.name] for spec in signature.inputs}
        if rows < size and not signature.dynamic_batch:  # filled up with its last row, cut off below
            fed = {name: np.concatenate([v, np.repeat(v[-1:], size - rows, axis=0)]) for name, v in fed.items()}
        for name, values in zip(names, run(fed), strict=True):
            if values.ndim == 0 or len(values) < rows:
                raise Problem(
                    "unsupported", f"output {name!r} of shape {values.shape} has no row for each of {rows} inputs"
                )
            parts[name].append(values[:rows])
    outputs = {name: np.concatenate(values) for name, values in parts.items()}
    for name, values in outputs.items():
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if wrong.any():
            raise Problem("diverged", f"output {name!r} is NaN or infinite in {wrong.sum()} of {len(values)} rows")
    return outputs


def write_outputs(outputs: Arrays, folder: Path) -> None:
    """`order.json` with the names, and one .npy file each."""
    (folder / "order.json").write_text(json.dumps(list(outputs)))
    for index, values in enumerate(outputs.values()):
        np.save(folder / f"{index}.npy", values, allow_pickle=False)


def read_outputs(folder: Path) -> Arrays:
    names = json.loads((folder / "order.json").read_text())
    return {name: np.load(folder / f"{index}.npy", allow_pickle=False) for index, name in enumerate(names)}


def targets_of(metric: MetricSpec, split: str, samples: Samples, reference: Arrays) -> metrics.Outputs:
    """The labels; the original's outputs for agreement, and where a metric needs no labels."""
    if metric.name == "agreement" or (samples.target is None and not metric.needs_labels):
        return simple(reference)
    if samples.target is None:
        raise Problem("input", f"the metric {metric.name} needs labels, and the {split} split has none",
                      "give labels in the data, or use --metric agreement")  # fmt: skip
    return np.asarray(samples.target)


def simple(outputs: Arrays) -> metrics.Outputs:
    """The array alone where there is one output only."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _told(name: str, error: Exception) -> str:
    """What went wrong; for a user's own metric, at which line of it."""
    reason = str(error) or type(error).__name__
    path = name.rpartition(":")[0]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if path and Path(frame.filename).name == Path(path).name:
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"the metric failed at {path}:{frame.lineno} ({line}): {type(error).__name__}: {reason}"
    return reason
