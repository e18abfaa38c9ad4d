"""The rates of this processor, from small graphs that are run on it: what a target's file can give.

    samples = measure(open, probes(), threads=1, seconds=0.15, log=print)  # half a minute
    attained = fit(samples)                                         # core.outcome.Attained

Each graph's time is a sum over its parts (`attained.py`), so the rates are its coefficients: least
squares of the relative errors, none of them negative. With one thread the time is the processor's own,
which other programs disturb less than the clock. A rate at its bound was not told apart from others.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from petra_deploy.core import machine
from petra_deploy.core.extension import Runner
from petra_deploy.core.outcome import Attained, Work
from petra_deploy.core.target import Computing, Moving, Starting
from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.artifact.work import count_nodes
from petra_deploy.worker.measure.attained import total
from petra_deploy.worker.measure.probes import Probe

NAMES = tuple(
    f"{table}.{key}"
    for table, keys in (("attained_gops", Computing), ("attained_gb_s", Moving), ("operator_us", Starting))
    for key in get_args(keys)
)
_FASTEST, _SHORTEST_US = 1e5, 1e-3  # bounds of a rate and of a start
_RUN_SECONDS, _RUNS = 3e-3, 5  # calls are timed in runs this long, at least so many
_SWEEPS = 3000


@dataclass(frozen=True)
class Sample:
    """A graph that was run: what it does in a call, and how long that took."""

    name: str
    work: tuple[Work, ...]
    seconds: float


def measure(
    open: Callable[[Path], Runner], graphs: Iterable[Probe], *, threads: int, seconds: float, log: Callable[[str], None]
) -> list[Sample]:
    """Each graph, for about `seconds`; `open` makes an engine of a folder with a `model.onnx`."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    samples = []
    for probe in graphs:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(probe.model, str(path))
            work = count_nodes(optimized(path), probe.feeds)
            with open(Path(folder)) as engine:
                taken = _call(engine, probe, seconds, clock)
        samples.append(Sample(probe.name, work, taken))
        log(f"{probe.name}: {1e6 * taken:.1f} us")
    return samples


def fit(samples: Sequence[Sample]) -> Attained:
    """The rates under which the samples' relative errors have the least squares."""
    amounts = np.array([[total(sample.work).get(name, 0.0) for name in NAMES] for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    least = np.array([_SHORTEST_US / 1e6 if name.startswith("operator_us") else 1 / _FASTEST for name in NAMES])
    table = amounts / seconds[:, None]
    costs = _least_squares(table, least)
    found: dict[str, dict[str, float]] = {"attained_gops": {}, "attained_gb_s": {}, "operator_us": {}}
    for name, cost in zip(NAMES, costs, strict=True):
        kind, _, key = name.partition(".")
        found[kind][key] = float(f"{cost * 1e6 if kind == 'operator_us' else 1 / cost:.4g}")
    errors = np.abs(table @ costs - 1)
    return Attained(
        **found,  # type: ignore[arg-type]
        graphs=len(samples), median_error=float(np.median(errors)), machine=machine.fingerprint(),
    )  # fmt: skip


def _call(engine: Runner, probe: Probe, seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of one call: the median over runs of calls."""
    for _ in range(3):
        engine.run(probe.feeds)
    start = clock()
    engine.run(probe.feeds)
    calls = max(1, round(_RUN_SECONDS / max(clock() - start, 1e-6)))
    runs: list[float] = []
    end = time.monotonic() + seconds
    while len(runs) < _RUNS or time.monotonic() < end:
        start = clock()
        for _ in range(calls):
            engine.run(probe.feeds)
        runs.append((clock() - start) / calls)
    return statistics.median(runs)


def _least_squares(table: NDArray[Any], least: NDArray[Any]) -> NDArray[Any]:
    """x >= least that makes |table @ x - 1| smallest, a coordinate at a time."""
    scale = np.linalg.norm(table, axis=0)
    scale[scale == 0] = 1.0  # of what no sample shows the cost stays the least
    scaled, x, floor = table / scale, least * scale, least * scale
    products, wanted = scaled.T @ scaled, scaled.sum(axis=0)
    for _ in range(_SWEEPS):
        before = x.copy()
        for j in range(len(x)):
            if products[j, j] > 0:
                x[j] = max(floor[j], x[j] + (wanted[j] - products[j] @ x) / products[j, j])
        if np.abs(x - before).max() < 1e-9:
            break
    solved: NDArray[Any] = x / scale
    return solved
