"""From samples to Figures: the one place that says what a percentile, a ratio and a verdict mean.

    speedup([-1.10, -1.12, -1.09, -1.11])       # log(candidate / baseline), one a round

The unit of a comparison is the round, a fresh pair of sessions: the memory layout of a session
moves its speed by more than the error within it. The interval is a confidence sequence, the
one-sided t-mixture e-process inverted, so it holds however often one looks and stops. The
gate's own test is in core/evidence.py. Sources: Lai, "On confidence sequences" (1976), for the t-mixture;
Wang and Ramdas, arXiv 2310.03722; Abramowitz and Stegun 26.7.3 for Student's distribution.
Everything here is pure: numpy and the standard library, no clock.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.outcome import Figure

ALPHA = 0.05
PHI = 2.0  # the mixture's scale: effects of about this many standard deviations of a round
FEWEST_ROUNDS = 4  # for the e-process; below, a plain t-interval that says so
BATCHES = 30  # into which dependent samples are cut to see how they depend
_SMALLEST_SD = 1e-4  # of a log ratio: clocks and medians resolve no less


def percentile(samples: "Sequence[float] | NDArray[np.float64]", q: float, unit: str) -> Figure:
    """The q-quantile (0 < q < 1), bounded by order statistics: no distribution is assumed.

    Each bound misses with at most 2.5% for the median and 1% for any other quantile. Where no
    sample can serve as bound (q ** n above that), there is no value, and the note says how many
    samples it takes: 459 for p99, 44 for p90. The median keeps its value and loses its bounds.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n, miss = len(ordered), 0.025 if q == 0.5 else 0.01
    needed = samples_needed(q)
    if n < needed:
        value = float(np.median(ordered)) if q == 0.5 and n else None
        return Figure(value=value, unit=unit, n=n, note=f"needs {needed}")
    lower, upper = _ranks(n, q, miss)
    return Figure(value=float(np.quantile(ordered, q)), unit=unit, low=float(ordered[lower]),
                  high=float(ordered[upper]), n=n)  # fmt: skip


def dependent_percentile(rounds: "Sequence[Sequence[float] | NDArray[np.float64]]", q: float, unit: str) -> Figure:
    """The q-quantile of samples that depend on those before them, such as waiting times; one sequence a round.

    The bounds are those of as many independent samples as these are worth (`effective_size`); where that is too few,
    there is no value, and the note says so.
    """
    ordered = np.sort(np.concatenate([np.asarray(values, dtype=np.float64) for values in rounds]))
    n, needed, miss = len(ordered), samples_needed(q), 0.025 if q == 0.5 else 0.01
    if n < needed:
        return percentile(ordered, q, unit)
    value = float(np.quantile(ordered, q))
    worth = effective_size(rounds, value)
    if worth < needed:
        note = f"needs {needed} that are independent; these {n} are worth {worth}"
        return Figure(value=value if q == 0.5 else None, unit=unit, n=n, note=note)
    lower, upper = _ranks(worth, q, miss)
    low = ordered[max(0, math.floor((lower + 1) / worth * n) - 1)]
    high = ordered[min(n - 1, math.ceil((upper + 1) / worth * n) - 1)]
    note = f"these samples are worth {worth} independent ones" if worth < n else ""
    return Figure(value=value, unit=unit, low=float(low), high=float(high), n=n, note=note)


def effective_size(rounds: "Sequence[Sequence[float] | NDArray[np.float64]]", threshold: float) -> int:
    """How many independent samples tell as much of P(X > threshold) as these do.

    The variance of that share is taken from the means of about BATCHES stretches of consecutive samples, none of them
    across two rounds, and Student's factor pays for their small number; so 100 independent samples are worth some 90.
    Sources: Heidelberger and Lewis, "Quantile estimation in dependent sequences", Operations Research 32 (1984);
    Schmeiser, "Batch size effects", Operations Research 30 (1982), for 10 to 30 batches.
    """
    above = [np.asarray(values, dtype=np.float64) > threshold for values in rounds]
    n = sum(map(len, above))
    size = max(1, n // BATCHES)
    means = np.concatenate([
        values[: len(values) // size * size].reshape(-1, size).mean(axis=1) for values in above
    ])  # fmt: skip
    share = float(np.mean(np.concatenate(above)))
    variance = size * float(np.var(means, ddof=1)) if len(means) > 1 else 0.0
    if variance == 0.0:  # all alike: nothing shows dependence
        return n if len(means) > 1 else 1
    students = t_quantile(0.975, len(means) - 1) / t_quantile(0.975, 10**6)
    return max(1, min(n, math.floor(n * share * (1 - share) / (variance * students**2))))


def samples_needed(q: float) -> int:
    """The fewest samples that bound the q-quantile on both sides."""
    miss = 0.025 if q == 0.5 else 0.01
    return math.ceil(math.log(miss) / math.log(max(q, 1 - q)))


def median(rounds: "Sequence[NDArray[np.float64]]", unit: str) -> Figure:
    """The median of all calls; its bounds also span the medians of the single rounds.

    Bounds over calls alone would deny that each session has a speed of its own.
    """
    pooled = percentile(np.concatenate(rounds), 0.5, unit)
    if pooled.low is None or pooled.high is None:
        return pooled
    each = [float(np.median(values)) for values in rounds]
    return Figure(value=pooled.value, unit=unit, low=min(pooled.low, *each), high=max(pooled.high, *each), n=pooled.n)


def rate(latency: Figure, rows: int) -> Figure:
    """Rows per second of calls that take `latency` (ms) for `rows` rows each."""

    def turned(ms: float | None) -> float | None:
        return None if ms is None else rows / (ms / 1e3)

    return Figure(value=turned(latency.value), unit="1/s", low=turned(latency.high), high=turned(latency.low),
                  n=latency.n, note=latency.note)  # fmt: skip


def spread(values: Sequence[float], unit: str) -> Figure:
    """The median of a few values, between their least and greatest."""
    return Figure(value=statistics.median(values), unit=unit, low=min(values), high=max(values), n=len(values),
                  note="bounds: least and greatest seen")  # fmt: skip


def mean(rounds: Sequence[float], unit: str, *, alpha: float = ALPHA) -> Figure:
    """The mean over rounds, each of which is a median of calls, with Student's interval for one look."""
    low, high = t_interval(rounds, alpha=alpha) if len(rounds) > 1 else (None, None)
    return Figure(value=statistics.fmean(rounds), unit=unit, low=low, high=high, n=len(rounds))


def speedup(log_ratios: Sequence[float]) -> Figure:
    """Baseline latency / candidate latency from log(candidate / baseline), one a round.

    From four rounds the interval is the confidence sequence; two or three give a t-interval that
    holds for this one look only ("racing" in the note); one gives none.
    """
    n = len(log_ratios)
    value = math.exp(-statistics.fmean(log_ratios))
    if n == 1:
        return Figure(value=value, unit="ratio", n=1, note="one round: no interval")
    if n < FEWEST_ROUNDS:
        low, high = t_interval(log_ratios)
        note = f"racing: a t-interval over {n} rounds"
    else:
        low, high = confidence_sequence(log_ratios)
        note = ""
    return Figure(value=value, unit="ratio", low=math.exp(-high), high=math.exp(-low), n=n, note=note)


def e_value(values: Sequence[float], bound: float) -> float:
    """Evidence that the mean lies above `bound`: under the contrary it averages at most 1.

    The mixture, over positive effect sizes with a half-normal prior of scale PHI, of the
    likelihood ratio of Student's t; 0 before the fourth value.
    """
    n = len(values)
    if n < FEWEST_ROUNDS:
        return 0.0
    sd = max(statistics.stdev(values), _SMALLEST_SD)
    t = (statistics.fmean(values) - bound) * math.sqrt(n) / sd
    dof, r = n - 1, PHI * PHI * n
    ratio = (1 + t * t / dof) / (1 + t * t / (dof * (1 + r)))
    return float(2 / math.sqrt(1 + r) * ratio ** ((dof + 1) / 2) * t_cdf(t / math.sqrt(1 + 1 / r), dof))


def confidence_sequence(values: Sequence[float], *, alpha: float = ALPHA) -> tuple[float, float]:
    """All means that `e_value` does not reject from either side, at any time."""
    mean, turned = statistics.fmean(values), [-x for x in values]
    return greatest_bound(values, 2 / alpha, e_value, mean), -greatest_bound(turned, 2 / alpha, e_value, -mean)


def t_interval(values: Sequence[float], *, alpha: float = ALPHA) -> tuple[float, float]:
    """Student's interval of the mean, for one look at two or more values."""
    n, mean = len(values), statistics.fmean(values)
    half = t_quantile(1 - alpha / 2, n - 1) * max(statistics.stdev(values), _SMALLEST_SD) / math.sqrt(n)
    return mean - half, mean + half


def sign_test(first: "NDArray[np.float64]", last: "NDArray[np.float64]") -> float:
    """Two-sided p-value that pairs differ in sign as often one way as the other; ties left out."""
    n = min(len(first), len(last))
    ups, downs = int(np.sum(first[:n] < last[:n])), int(np.sum(first[:n] > last[:n]))
    if ups + downs == 0:
        return 1.0
    return min(1.0, 2 * float(_binomial_cdf(ups + downs, 0.5)[min(ups, downs)]))


def t_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's distribution with a whole number of degrees of freedom."""
    theta = math.atan2(t, math.sqrt(dof))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = dof % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, dof, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 0.5 * (1 + inside)))


def t_quantile(p: float, dof: int) -> float:
    """The p-quantile of Student's distribution, for p at or above one half."""
    z = statistics.NormalDist().inv_cdf(p)
    if dof > 1000:
        return z + (z**3 + z) / (4 * dof)
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return high


def greatest_bound(
    values: Sequence[float], threshold: float, evidence: Callable[[Sequence[float], float], float], inside: float
) -> float:
    """The greatest bound that `values` exceed with evidence `threshold`, which falls as the bound rises.

    `inside` is a bound that they do not exceed so surely. -inf where no bound, however low, is exceeded.
    """
    step = 1e-4
    while evidence(values, inside - step) < threshold:
        step *= 2
        if step > 1e3:
            return -math.inf
    low, high = inside - step, inside
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(values, middle) >= threshold else (low, middle)
    return low


def _ranks(n: int, q: float, miss: float) -> tuple[int, int]:
    """Which of n ordered samples (from 0) bound the q-quantile, each missing with at most `miss`."""
    below = _binomial_cdf(n, q)  # below[k] = P(at most k of n samples lie under the quantile)
    return int(np.count_nonzero(below <= miss)) - 1, int(np.argmax(below >= 1 - miss))


def _binomial_cdf(n: int, p: float) -> "NDArray[np.float64]":
    """P(X <= k) for k = 0 .. n."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    logs = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.asarray(np.minimum(np.cumsum(np.exp(logs)), 1.0))
