"""Compare: two engines in paired rounds, alone on the device, until the gates on latency are decided."""

import time

from petra_deploy.core import machine
from petra_deploy.core.comparison import Compared
from petra_deploy.core.job import Compare
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import make_feeds, opener, threads_of
from petra_deploy.worker.measure import preflight
from petra_deploy.worker.measure.duel import duel
from petra_deploy.worker.measure.lock import exclusive


def run(job: Compare, context: Context) -> Compared:
    """The rounds as they were. Raises Problem where an engine cannot run."""
    samples = Samples.open(context.store.path(job.split.key))
    feeds = {gate.batch: make_feeds(samples, job.new, gate.batch) for gate in job.gates}
    openers = {"baseline": opener(job.base, context), "candidate": opener(job.new, context)}
    threads = max(threads_of(job.base), threads_of(job.new))
    with exclusive(context.store.root, job.target.device, context.log), preflight.pinned(threads) as core:
        before, began = preflight.state(), time.process_time()
        rounds = duel(openers, feeds, job.gates, most_rounds=job.most_rounds, seed=job.seed, seconds=job.seconds,
                      threads=threads, log=context.log)  # fmt: skip
        spent, after = time.process_time() - began, preflight.state()
    sitting = {"seed": job.seed, "rounds": len(rounds), "core": core, "before": before, "after": after}
    return Compared(
        rounds=tuple(rounds), cpu_seconds=spent, sittings=(sitting,),
        machine=machine.fingerprint() | (machine.gpus() if job.target.device == "cuda" else {}),
        warnings=tuple(preflight.warnings(before, after)),
    )  # fmt: skip
