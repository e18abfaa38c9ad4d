"""From counted work to milliseconds, for hardware that is not here: a prediction, never a measurement.

    latency_ms(work, target)            # of one call
    halved(work)                        # the same operators in FP16

Where the target's file has rates that were measured (`attained.py`), the sum of what operators take at
those. Elsewhere an operator takes its multiply-accumulates at the peak that its precision has on the
target, and its bytes at the target's bandwidth, each as far as such programs reach them, and every kernel
its start, and the call its own; widths are filled up to what the target's matrix units take. How far they
reach them (`ASSUMED`) was read off engines of one ResNet on one H200 (docs/measurements.md, "On a GPU") and
is a guess anywhere else, until predictions have been measured there (`core/ledger.py`).
Source of the form: Williams et al., "Roofline" (2009), with sums in place of the maximum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from petra_deploy.core.outcome import ErrorBar, Figure, Work
from petra_deploy.core.target import Precision, Target
from petra_deploy.worker.measure import attained


@dataclass(frozen=True)
class Shares:
    """What a network of middling layers reaches of a GPU's data sheet."""

    of_peak: float = 0.16
    of_bandwidth: float = 0.7
    kernel_us: float = 8.5  # to start a kernel, fill the device and wait for its end
    call_us: float = 50.0  # to bring the inputs, start, and fetch the outputs


ASSUMED = Shares()


def latency_ms(work: Sequence[Work], target: Target, shares: Shares = ASSUMED) -> float:
    """Of one call that does `work`.

    Raises ValueError for a target with neither attained rates nor peaks and bandwidth, and with some rates only.
    """
    if missing := target.missing_rates:
        raise ValueError(f"{target.name} has attained rates, but not {', '.join(missing)}")
    if target.attained:
        return attained.milliseconds(work, target)
    if target.bandwidth_gb_s is None:
        raise ValueError(f"{target.name} has no bandwidth")
    bandwidth = target.bandwidth_gb_s * 1e9 * shares.of_bandwidth
    seconds = shares.call_us / 1e6
    for each in work:
        seconds += 2 * each.macs * _filled(each, target) / (_peak_of(each, target) * shares.of_peak)
        seconds += (each.weight_bytes + each.activation_bytes) / bandwidth
        seconds += 0.0 if each.joined else shares.kernel_us / 1e6
    return 1e3 * seconds


def halved(work: Sequence[Work]) -> tuple[Work, ...]:
    """What FP32 operators would do in FP16: half the bytes."""
    return tuple(
        replace(each, precision="fp16", weight_bytes=each.weight_bytes / 2, activation_bytes=each.activation_bytes / 2)
        if each.precision == "fp32"
        else each
        for each in work
    )


def peak(precision: Precision, target: Target) -> float:
    """Operations a second, of matrix products; what the target lacks runs in FP32.

    FP32 products are TF32's from compute capability 8.0 on, as runtimes do them unless told not to, at half of
    FP16's peak; so are those for which no source gives a peak.
    """
    peaks = target.peaks_tflops
    tf32 = float(target.compute_capability or 0) >= 8.0 and "fp16" in peaks
    if precision in peaks and not (precision == "fp32" and tf32):
        return peaks[precision] * 1e12
    if "fp32" in peaks and not tf32:
        return peaks["fp32"] * 1e12
    if "fp16" in peaks:
        return max(peaks["fp16"] / 2, peaks.get("fp32", 0.0)) * 1e12
    raise ValueError(f"{target.name} has no peaks")


def figure(value: float, unit: str, error: ErrorBar) -> Figure:
    """With its bounds: those of speedups for a ratio, those of latencies for anything else."""
    factor = error.speedup if unit == "ratio" else error.latency
    return Figure(
        value=value, unit=unit, low=value / factor, high=value * factor, n=0, origin="predicted", note=error.note
    )


def unknown(unit: str, why: str) -> Figure:
    return Figure(value=None, unit=unit, n=0, origin="predicted", note=why)


def _peak_of(work: Work, target: Target) -> float:
    """Depthwise convolutions have no use for matrix units: in any precision they take FP32's plain peak."""
    if work.op == "DepthwiseConv" and "fp32" in target.peaks_tflops:
        return target.peaks_tflops["fp32"] * 1e12
    return peak("fp32" if work.op == "DepthwiseConv" else work.precision, target)


def _filled(work: Work, target: Target) -> float:
    """How much more is computed than asked for, with both widths filled up."""
    step = target.channel_steps.get(work.precision, 1)
    if work.op == "DepthwiseConv" or not work.inner or not work.outer:
        return 1.0
    return (math.ceil(work.inner / step) * step / work.inner) * (math.ceil(work.outer / step) * step / work.outer)
