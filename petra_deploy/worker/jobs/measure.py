"""Measure: a candidate's engine against the baseline's, alone on the device.

In this order: the device's lock, one core, a child of its own for the memory, the state of the
machine, then rounds of fresh pairs. The raw rounds go to the store, and every latency and ratio is
a pure function of them.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import files, machine, registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Backend, Runner
from petra_deploy.core.job import Measure
from petra_deploy.core.outcome import Engine, Figure, Measurement
from petra_deploy.core.rounds import drift, figures
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.measure import loop, preflight
from petra_deploy.worker.measure.lock import exclusive
from petra_deploy.worker.measure.memory import peak_memory

_FEEDS = 4  # different feeds of a batch size, served in turn


def run(job: Measure, context: Context) -> Measurement:
    """Figures of both engines, at each batch size. Raises Problem where an engine cannot run.

    With `job.earlier` they are figures of its rounds and the new ones together.
    """
    engines = {"candidate": job.engine, "baseline": job.baseline}
    earlier = _earlier(job, context)
    samples = Samples.open(context.store.path(job.split.key))
    feeds = {batch: make_feeds(samples, job.engine, batch) for batch in batch_sizes(job.engine, job.batches)}
    threads = max(threads_of(engine) for engine in engines.values())
    with exclusive(context.store.root, job.target.device, context.log), preflight.pinned(threads) as core:
        if job.earlier is not None:
            peak = job.earlier.peak_memory
        else:
            peak = _peak(
                job.engine, feeds[next(iter(feeds))], job.target.device, context
            )  # first: no engine is open yet
        before = preflight.state()
        measured = loop.measure(
            {side: opener(engine, context) for side, engine in engines.items()}, feeds,
            rounds=job.rounds, seed=job.seed, seconds=job.seconds, threads=threads if job.target.device == "cpu" else 0,
            log=context.log,
        )  # fmt: skip
        after = preflight.state()
    rounds = [*earlier.get("rounds", []), *measured]
    sitting = {"seed": job.seed, "rounds": len(measured), "core": core, "before": before, "after": after}
    sittings = [*earlier.get("sittings", []), sitting]
    found = figures(rounds)
    fingerprint = machine.fingerprint() | (machine.gpus() if job.target.device == "cuda" else {})
    record = {
        "schema": "petra-deploy/rounds/1", "candidate": job.engine.key, "baseline": job.baseline.key,
        "runtimes": {side: engine.backend for side, engine in engines.items()},  # a key is of files alone
        "machine": fingerprint, "sittings": sittings, "rounds": rounds,
    }  # fmt: skip
    key = context.store.add(lambda folder: (folder / "rounds.json").write_text(json.dumps(files.plain(record))))
    return Measurement(
        candidate=found.candidate,
        baseline=found.baseline,
        speedups=found.speedups,
        load=found.load,
        peak_memory=peak,
        rounds=key,
        machine={**fingerprint, "sittings": sittings, "drift": drift(rounds)},
        warnings=(*preflight.warnings(sittings[0]["before"], after), *found.warnings),
    )


def _earlier(job: Measure, context: Context) -> dict[str, Any]:
    """The record that `job` goes on with, or an empty one."""
    if job.earlier is None:
        return {}
    record: dict[str, Any] = json.loads((context.store.path(job.earlier.rounds) / "rounds.json").read_text())
    if (record["candidate"], record["baseline"]) != (job.engine.key, job.baseline.key):
        raise ValueError("earlier rounds are of other engines")
    return record


def batch_sizes(engine: Engine, asked: Sequence[int]) -> tuple[int, ...]:
    """Those asked for; the one and only where the model's batch is fixed."""
    if engine.signature.dynamic_batch:
        return tuple(dict.fromkeys(asked))
    return (engine.signature.fixed_batch or 1,)


def make_feeds(samples: Samples, engine: Engine, batch: int) -> list[dict[str, NDArray[Any]]]:
    """A few batches of the split's rows; rows come round again where there are too few."""
    names = [spec.name for spec in engine.signature.inputs]
    if missing := [name for name in names if name not in samples.inputs]:
        raise Problem("input", f"the data has no input {missing[0]!r}; it has {', '.join(samples.inputs)}")
    rows, made = len(samples), []
    for index in range(min(_FEEDS, -(-rows // batch))):
        chosen = np.arange(index * batch, (index + 1) * batch) % rows
        made.append({name: np.ascontiguousarray(samples.inputs[name][chosen]) for name in names})
    return made


def opener(engine: Engine, context: Context) -> Callable[[int], Runner]:
    """Opens the engine anew each time, given a seed for its place in memory."""
    backend: Backend = registry.find("backend", engine.backend)
    folder = context.store.path(engine.key)
    return lambda seed: backend.open(folder, engine.settings, seed=seed)


def _peak(engine: Engine, feeds: list[dict[str, NDArray[Any]]], device: str, context: Context) -> Figure:
    scratch, folder = context.store.scratch(), context.store.path(engine.key)
    try:
        return peak_memory(engine.backend, folder, engine.settings, feeds, scratch, device=device)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def threads_of(engine: Engine) -> int:
    threads = engine.settings.get("threads", 1)
    return threads if isinstance(threads, int) else 1
