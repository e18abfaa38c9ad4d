"""Compare: two engines in paired rounds, alone on the device, until the gates on latency are decided."""

import os
from pathlib import Path

from petra_deploy.core import machine
from petra_deploy.core.comparison import Compared
from petra_deploy.core.job import Compare
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import make_feeds, opener, threads_of
from petra_deploy.worker.measure import partner, preflight
from petra_deploy.worker.measure.duel import duel
from petra_deploy.worker.measure.lock import exclusive
from petra_deploy.worker.measure.loop import Openers


def run(job: Compare, context: Context) -> Compared:
    """The rounds as they were. Raises Problem where an engine cannot run."""
    samples = Samples.open(context.store.path(job.split.key))
    feeds = {gate.batch: make_feeds(samples, job.new, gate.batch) for gate in job.gates}
    engines = {"baseline": job.base, "candidate": job.new}
    threads = max(map(threads_of, engines.values()))
    openers: Openers = {side: opener(engine, context) for side, engine in engines.items()}
    if job.overlay is not None:  # two versions of one runtime, which no process can hold both
        openers = partner.openers(engines, context.store, overlays={"candidate": Path(job.overlay)}, threads=threads)
    with exclusive(context.store.root, job.target.device, context.log), preflight.pinned(threads) as core:
        before, began = preflight.state(core), _processor_time()
        rounds = duel(openers, feeds, job.gates, most_rounds=job.most_rounds, seed=job.seed, seconds=job.seconds,
                      threads=threads if job.target.device == "cpu" else 0, log=context.log)  # fmt: skip
        spent, after = _processor_time() - began, preflight.state(core)
    sitting = {"seed": job.seed, "rounds": len(rounds), "core": core, "before": before, "after": after}
    return Compared(
        rounds=tuple(rounds), cpu_seconds=spent, sittings=(sitting,),
        machine=machine.fingerprint() | (machine.gpus() if job.target.device == "cuda" else {}),
        warnings=tuple(preflight.warnings(before, after)),
    )  # fmt: skip


def _processor_time() -> float:
    """Seconds, with those of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
