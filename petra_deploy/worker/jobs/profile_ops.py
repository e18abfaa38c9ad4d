"""ProfileOps: what each operator of an engine costs, of which layer it is, and the same of a base, in turns.

Like every measurement: alone on the device, on one core where the engines need one only, a fresh engine of each
kind a round. Each round runs both engines with the profiler and without, in random order.
"""

import math
import shutil
import statistics
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import machine, registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.job import ProfileOps
from petra_deploy.core.operators import OpsProfile, Profiled
from petra_deploy.core.outcome import Engine
from petra_deploy.core.samples import Samples
from petra_deploy.worker.artifact.attribution import Layers
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import batch_sizes, make_feeds, threads_of
from petra_deploy.worker.measure import preflight
from petra_deploy.worker.measure.calls import timed_both_us, timed_us
from petra_deploy.worker.measure.lock import exclusive
from petra_deploy.worker.measure.operators import Round, calls_for, contended, profile_of

Feeds = list[dict[str, NDArray[Any]]]
_TRIED = 3  # calls that say how many a round takes


def run(job: ProfileOps, context: Context) -> Profiled:
    """Raises Problem "unsupported" where a backend has no profiler, or the engine cannot run."""
    engines = [job.engine] if job.base is None else [job.engine, job.base]
    backends = [_profiling(engine.backend) for engine in engines]
    batch = batch_sizes(job.engine, (job.batch,))[0]
    samples = Samples.open(context.store.path(job.split.key))
    feeds = [make_feeds(samples, engine, batch) for engine in engines]
    threads = max(threads_of(engine) for engine in engines)
    alone = threads == 1 and job.target.device == "cpu"  # the calling thread does all the work
    generator = np.random.default_rng(job.seed)
    rounds: list[list[Round]] = [[] for _ in engines]
    with exclusive(context.store.root, job.target.device, context.log), preflight.pinned(threads) as core:
        before = preflight.state(core)
        for _ in range(job.rounds):
            for side in map(int, generator.permutation(len(engines))):
                seed = int(generator.integers(2**31))
                rounds[side].append(
                    _round(backends[side], engines[side], feeds[side], job.seconds / 2, seed, alone, context)
                )
        after = preflight.state(core)
    profiles = [_profile(engine, batch, found, context) for engine, found in zip(engines, rounds, strict=True)]
    noise = contended([found for one in rounds for found in one]) if alone else ""
    fingerprint = machine.fingerprint() | (machine.gpus() if job.target.device == "cuda" else {})
    return Profiled(
        engine=profiles[0], base=profiles[1] if len(profiles) > 1 else None, machine=fingerprint,
        sittings=({"seed": job.seed, "rounds": job.rounds, "core": core, "before": before, "after": after},),
        warnings=(*preflight.warnings(before, after), *([noise] if noise else [])),
    )  # fmt: skip


def _round(backend: ModuleType, engine: Engine, feeds: Feeds, seconds: float, seed: int, alone: bool,
           context: Context) -> Round:  # fmt: skip
    """Once without the profiler, then with it: two fresh engines, in the same place in memory."""
    folder, scratch = context.store.path(engine.key), context.store.scratch()
    try:
        with backend.open(folder, engine.settings, seed=seed) as runner:
            calls = calls_for(statistics.median(timed_us(runner.run, feeds, _TRIED)), seconds)
            walls, cpus = timed_both_us(runner.run, feeds, calls)
        ran = backend.profile(folder, engine.settings, feeds, calls, scratch, seed=seed)
        return Round(statistics.median(walls), statistics.median(cpus) if alone else math.inf, ran)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _profile(engine: Engine, batch: int, rounds: Sequence[Round], context: Context) -> OpsProfile:
    import onnx

    model = context.store.path(engine.key) / "model.onnx"
    layers = Layers(onnx.load(str(model), load_external_data=False))
    return profile_of(engine.backend, batch, rounds, layers)


def _profiling(name: str) -> ModuleType:
    """The backend. Raises Problem("unsupported") where it cannot profile, naming those that can."""
    backend: ModuleType = registry.find("backend", name)
    if hasattr(backend, "profile"):
        return backend
    able = [other for other in registry.names("backend") if hasattr(registry.find("backend", other), "profile")]
    raise Problem("unsupported", f"the backend {name} has no profiler", f"these have one: {', '.join(able)}")
