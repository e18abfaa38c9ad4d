"""Bench: one engine in the scenarios of MLPerf's load generator, alone on the device.

In this order: the device's lock, one core, new processes for the cold start and the memory, the state of the machine,
then the scenarios in the order asked for. The answer holds every call's time; core/tails.py makes the figures of it.
"""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from petra_deploy.core import machine, tails
from petra_deploy.core.extension import Runner
from petra_deploy.core.job import Bench
from petra_deploy.core.profile import Benched, Record, Scenario
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs import measure
from petra_deploy.worker.jobs.measure import batch_sizes, make_feeds
from petra_deploy.worker.measure import energy, preflight, scenarios, server, yardstick
from petra_deploy.worker.measure.lock import exclusive
from petra_deploy.worker.measure.memory import cold_starts

_LIMIT = 5.0  # times the single stream's p50: a server's limit where none was given


def run(job: Bench, context: Context) -> Benched:
    """Raises Problem where the engine cannot run."""
    rows = Samples.open(context.store.path(job.split.key))
    sizes = batch_sizes(job.engine, job.batches)
    threads = measure.threads_of(job.engine)
    meter, energy_of = energy.find(job.target.device)
    with exclusive(context.store.root, job.target.device, context.log), preflight.pinned(threads) as core:
        starts = _starts(job, make_feeds(rows, job.engine, sizes[0]), context)
        before = preflight.state(core)
        effort = scenarios.Effort(rounds=job.rounds, seconds=job.seconds, threads=threads, seed=job.seed, meter=meter,
                                  log=context.log)  # fmt: skip
        made = _scenarios(job, rows, sizes, effort, context)
        after = preflight.state(core)
    sitting: Record = {"seed": job.seed, "threads": threads, "core": core, "before": before, "after": after,
                       "energy": energy_of, "starts": starts}  # fmt: skip
    noise = tails.noise(made) if job.target.device == "cpu" else ()
    return Benched(
        scenarios=made,
        cold=tails.cold(starts),
        peak_memory=tails.peak(starts),
        inputs="random" if job.split.origin == "random" else "data",
        machine=machine.fingerprint() | (machine.gpus() if job.target.device == "cuda" else {}),
        sittings=(sitting,),
        warnings=(*preflight.warnings(before, after), *noise),
    )


def _scenarios(
    job: Bench, rows: Samples, sizes: Sequence[int], effort: scenarios.Effort, context: Context
) -> tuple[Scenario, ...]:  # fmt: skip
    opener, dynamic = measure.opener(job.engine, context), job.engine.signature.dynamic_batch
    made: list[Scenario] = []

    def add(name: Any, batch: int, settings: dict[str, object], rounds: Sequence[Record]) -> None:
        made.append(tails.scenario_of(name, batch, effort.threads, {"seed": job.seed, **settings}, rounds))

    for name in job.scenarios:
        context.log(f"scenario {name}")
        if name == "single-stream":
            for size in sizes:
                rounds = scenarios.streamed(opener, make_feeds(rows, job.engine, size), effort, rows=size)
                add(name, size, {"yardstick": yardstick.NAME}, rounds)
        elif name == "multi-stream":
            call = job.streams if dynamic else sizes[0]
            calls, feeds = -(-job.streams // call), make_feeds(rows, job.engine, call)
            queries = scenarios.in_queries(opener, feeds, calls)
            rounds = scenarios.streamed(queries, feeds, effort, rows=job.streams)
            add(name, job.streams, {"yardstick": yardstick.NAME, "calls_a_query": calls}, rounds)
        elif name == "offline":
            for size in sizes:
                rounds = scenarios.offline(opener, make_feeds(rows, job.engine, size), effort, rows=size)
                add(name, size, {}, rounds)
        else:
            feeds = make_feeds(
                rows, job.engine, 1 if dynamic else sizes[0]
            )  # of a fixed batch, a call a row all the same
            limit = job.limit_ms or _LIMIT * _p50(made, opener, feeds, effort)
            rounds = server.highest_rate(opener, feeds, effort, limit)
            add(name, 1, {"limit_ms": limit, "limit": "given" if job.limit_ms else f"{_LIMIT:g} x p50"}, rounds)
    return tuple(made)


def _p50(made: Sequence[Scenario], opener: Callable[[int], Runner], feeds: Any, effort: scenarios.Effort) -> float:
    """Milliseconds of a call of one row: the single stream's, where that was measured, else of a round of it."""
    for one in made:
        if one.name == "single-stream" and one.latency is not None and one.batch == len(next(iter(feeds[0].values()))):
            return one.latency.p50.known()
    brief = replace(effort, rounds=1, meter=None)
    rounds = scenarios.streamed(opener, feeds, brief, rows=1)
    return float(statistics.median(rounds[0]["engine"]["hot_ns"])) / 1e6


def _starts(job: Bench, feeds: Any, context: Context) -> list[Record]:
    if not job.starts:
        return []
    scratch, folder = context.store.scratch(), context.store.path(job.engine.key)
    try:
        return cold_starts(job.engine.backend, folder, job.engine.settings, feeds, scratch, times=job.starts,
                           device=job.target.device)  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
