"""Predict: what Measure would answer on a target that is not here, from what both graphs have to do.

Work is counted in a real run of each graph at each batch size; time comes from the target's file
(`worker/measure/predicted.py`). Every figure is of origin "predicted". On a GPU an FP32 baseline is
not what anybody would serve, so the ratio to the baseline in FP16 stands beside.
"""

from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.job import Predict
from petra_deploy.core.outcome import Engine, Latency, Measurement, Work
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import batch_sizes, make_feeds
from petra_deploy.worker.measure import predicted
from petra_deploy.worker.model.work import count


def run(job: Predict, context: Context) -> Measurement:
    """Raises Problem where a graph does not run."""
    samples = Samples.open(context.store.path(job.split.key))
    candidate, baseline, speedups, over_half = [], [], [], []
    half = job.target.device == "cuda" and "fp16" in job.target.precisions
    for batch in batch_sizes(job.engine, job.batches):
        feeds = make_feeds(samples, job.engine, batch)[0]
        before, after = _work(job.baseline, feeds, context), _work(job.engine, feeds, context)
        base, cand = (predicted.latency_ms(work, job.target) for work in (before, after))
        candidate.append(_latency(batch, cand))
        baseline.append(_latency(batch, base))
        speedups.append(predicted.figure(base / cand, "ratio"))
        if half:
            over_half.append(
                predicted.figure(predicted.latency_ms(predicted.halved(before), job.target) / cand, "ratio")
            )
    return Measurement(
        candidate=tuple(candidate),
        baseline=tuple(baseline),
        speedups=tuple(speedups),
        over_half=tuple(over_half),
        load=predicted.unknown("ms", "not predicted"),
        peak_memory=predicted.unknown("bytes", "not predicted"),
        rounds="",
    )


def _work(engine: Engine, feeds: dict[str, NDArray[Any]], context: Context) -> tuple[Work, ...]:
    return count(context.store.path(engine.key) / "model.onnx", feeds)


def _latency(batch: int, ms: float) -> Latency:
    nothing = predicted.unknown("ms", "not predicted")
    rate = predicted.figure(batch / (ms / 1e3), "1/s")
    return Latency(
        batch=batch, p50=predicted.figure(ms, "ms"), p90=nothing, p99=nothing, first=nothing, throughput=rate
    )
