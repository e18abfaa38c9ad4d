"""Predict: what Measure would answer on a target that is not here, from what both graphs have to do.

Work is counted in a real run of each graph at each batch size: of a processor whose rates were measured
the graph as ONNX Runtime optimizes it, of others the graph as it is written. Time comes from the target's
file (`worker/measure/predicted.py`). Every figure is of origin "predicted". On a GPU an FP32 baseline is
not what anybody would serve, so the ratio to the baseline in FP16 stands beside.
"""

from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.job import Predict
from petra_deploy.core.outcome import Engine, ErrorBar, Latency, Measurement, Work, WorkSum
from petra_deploy.core.samples import Samples
from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.artifact.work import count, count_nodes
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import batch_sizes, make_feeds
from petra_deploy.worker.measure import predicted


def run(job: Predict, context: Context) -> Measurement:
    """Raises Problem where a graph does not run."""
    samples = Samples.open(context.store.path(job.split.key))
    candidate, baseline, speedups, over_half, sums = [], [], [], [], []
    error, as_run = job.error, job.target.attained
    half = job.target.device == "cuda" and "fp16" in job.target.precisions
    for batch in batch_sizes(job.engine, job.batches):
        feeds = make_feeds(samples, job.engine, batch)[0]
        before, after = (_work(engine, feeds, as_run, context) for engine in (job.baseline, job.engine))
        base, cand = (predicted.latency_ms(work, job.target) for work in (before, after))
        candidate.append(_latency(batch, cand, error))
        baseline.append(_latency(batch, base, error))
        speedups.append(predicted.figure(base / cand, "ratio", error))
        sums.append(WorkSum.of(after))
        if half:
            halved = predicted.latency_ms(predicted.halved(before), job.target)
            over_half.append(predicted.figure(halved / cand, "ratio", error))
    return Measurement(
        candidate=tuple(candidate),
        baseline=tuple(baseline),
        speedups=tuple(speedups),
        over_half=tuple(over_half),
        load=predicted.unknown("ms", "not predicted"),
        peak_memory=predicted.unknown("bytes", "not predicted"),
        work=tuple(sums),
        rounds="",
    )


def _work(engine: Engine, feeds: dict[str, NDArray[Any]], as_run: bool, context: Context) -> tuple[Work, ...]:
    path = context.store.path(engine.key) / "model.onnx"
    return count_nodes(optimized(path, engine.settings), feeds) if as_run else count(path, feeds)


def _latency(batch: int, ms: float, error: ErrorBar) -> Latency:
    nothing = predicted.unknown("ms", "not predicted")
    rate = predicted.figure(batch / (ms / 1e3), "1/s", error)
    return Latency(
        batch=batch, p50=predicted.figure(ms, "ms", error), p90=nothing, p99=nothing, first=nothing, throughput=rate
    )
