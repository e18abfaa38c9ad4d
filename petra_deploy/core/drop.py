"""The drop of a metric from the original to a candidate, in points, with what its rows can resolve.

    drop, error = paired_drop(SPECS["accuracy"], reference_outputs, outputs, labels)
    drop.value, drop.low, drop.high, error           # points; more is worse

Both models saw the same rows, so the interval is over paired differences: shares of right answers
by Bonett and Price's adjusted Wald interval ("Improved confidence intervals for matched
proportions", 2012), which never collapses; other means of row figures by Student's t; the rest
(f1, auc, r2, rmse, a user's function) by a seeded paired bootstrap.

The standard error has a floor: agreement on a few hundred rows does not prove equality on all.
"""

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import metrics
from petra_deploy.core.outcome import Figure
from petra_deploy.core.stats import ALPHA, t_quantile
from petra_deploy.core.workload import MetricSpec

Array = NDArray[Any]
_DECISIONS = ("accuracy", "agreement")
_MOST_ROWS = 20_000  # above, fewer resamples: the interval's own error no longer matters
_FEWEST_RESAMPLES = 100
DECIMALS = 9  # of a drop in points: no split has rows enough to tell more


def paired_drop(
    metric: MetricSpec, reference: metrics.Outputs, outputs: metrics.Outputs, targets: metrics.Outputs | None,
    *, seed: int = 0, resamples: int = 1000, seconds: float = 60.0,
) -> tuple[Figure, float]:  # fmt: skip
    """(drop in points with its 95% interval, standard error in points).

    `seconds` only stops a slow metric of a user's; else the same rows give the same interval.
    Raises ValueError where the metric cannot judge, or a point is undefined (a baseline of 0).
    """
    baseline = metrics.evaluate(metric, reference, targets)
    value = points(metric, baseline, metrics.evaluate(metric, outputs, targets))
    rows = len(metrics.first(outputs))
    floor = 1.0 / math.sqrt(rows)  # rows are never taken to differ less than by a point
    note = ""
    if metric.name in metrics.ROWS:
        row_figures = metrics.ROWS[metric.name]
        before, after = row_figures(reference, targets), row_figures(outputs, targets)
        differences = (before - after) * _scale(metric, baseline)
        if metric.name in _DECISIONS and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
            low, high, error = _adjusted_wald(differences)
        else:
            low, high, error = _student(differences, floor)
    else:
        drops, note = _bootstrap(metric, baseline, reference, outputs, targets, seed, resamples, seconds)
        error = float(np.std(drops, ddof=1)) if len(drops) > 1 else 0.0
        if metric.name == "f1" or error == 0:  # like two rows that changed, one each way
            floor = max(floor, 100 * math.sqrt(2) / (rows + 2))
        low, high = (float(x) for x in np.quantile(drops, (ALPHA / 2, 1 - ALPHA / 2))) if len(drops) else (value, value)
        if error < floor:
            error, half = floor, 1.96 * floor
            low, high = min(low, value - half), max(high, value + half)
    return Figure(value=value, unit="points", low=low, high=high, n=rows, note=note), error


def points(metric: MetricSpec, baseline: float, value: float) -> float:
    """How much worse `value` is than `baseline`, in points: 0.01, or 1% of the baseline's value.

    Rounded, so that one row of a hundred is a drop of one point, not of 1.0000000000000009, which is not within one.
    """
    return round((baseline - value) * _scale(metric, baseline), DECIMALS)


def _scale(metric: MetricSpec, baseline: float) -> float:
    if not metric.bounded and baseline == 0:
        raise ValueError(f"the original's {metric.name} is 0, so a point (1% of it) is not defined; use another metric")
    return (1 if metric.higher_is_better else -1) * (100.0 if metric.bounded else 100.0 / abs(baseline))


def _adjusted_wald(differences: Array) -> tuple[float, float, float]:
    """Bonett and Price: one row more each way, then Wald. `differences` are -100, 0 or 100."""
    n = len(differences) + 2
    worse, better = (np.sum(differences > 0) + 1) / n, (np.sum(differences < 0) + 1) / n
    middle, error = worse - better, math.sqrt((worse + better - (worse - better) ** 2) / n)
    low, high = (100 * float(np.clip(middle + side * 1.959964 * error, -1, 1)) for side in (-1, 1))
    return low, high, 100 * error


def _student(differences: Array, floor: float) -> tuple[float, float, float]:
    n, mean = len(differences), float(np.mean(differences))
    error = max(float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else 0.0, floor)
    half = t_quantile(1 - ALPHA / 2, max(n - 1, 1)) * error
    return mean - half, mean + half, error


def _bootstrap(
    metric: MetricSpec, baseline: float, reference: metrics.Outputs, outputs: metrics.Outputs,
    targets: metrics.Outputs | None, seed: int, resamples: int, seconds: float,
) -> tuple[list[float], str]:  # fmt: skip
    """The drop on rows drawn with replacement, and a note where not all draws could be used."""
    function = metrics.get(metric)
    if metric.name == "f1":  # the threshold of scores is settled once, on all rows
        (before, labels), (after, _) = metrics.predictions(reference, targets), metrics.predictions(outputs, targets)  # type: ignore[arg-type]
        reference, outputs, targets = before, after, labels
    rows = len(metrics.first(outputs))
    wanted = max(_FEWEST_RESAMPLES, min(resamples, resamples * _MOST_ROWS // rows))
    scale, generator, drops = _scale(metric, baseline), np.random.default_rng(seed), []
    reason, deadline = "", time.monotonic() + seconds
    for done in range(wanted):
        if done >= _FEWEST_RESAMPLES and time.monotonic() > deadline:
            reason = reason or "the metric is slow"
            break
        chosen = generator.integers(rows, size=rows)
        try:
            before_value, after_value = (
                float(function(_take(x, chosen), _take(targets, chosen))) for x in (reference, outputs)
            )
        except Exception as error:  # a user's code, or a class that this draw left out
            reason = str(error)
            continue
        if math.isfinite(before_value) and math.isfinite(after_value):
            drops.append((before_value - after_value) * scale)
    return drops, f"bounds from {len(drops)} of {wanted} resamples: {reason}" if len(drops) < wanted else ""


def _take(values: metrics.Outputs | None, rows: Array) -> Any:
    if isinstance(values, Mapping):
        return {name: array[rows] for name, array in values.items()}
    return None if values is None else metrics.first(values)[rows]


def resolution(error: float) -> float:
    """The smallest drop, in points, that this many rows tell from none: two standard errors."""
    return statistics.NormalDist().inv_cdf(1 - ALPHA / 2) * error
