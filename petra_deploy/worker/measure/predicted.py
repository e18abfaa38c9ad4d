"""From counted work to milliseconds, for hardware that is not here: a prediction, never a measurement.

    latency_ms(work, target)            # of one call
    halved(work)                        # the same operators in FP16

An operator takes its multiply-accumulates at the peak that its precision has on the target, and its
bytes at the target's bandwidth, each as far as such programs reach them, and every kernel its start.
Widths are filled up to what the target's matrix units take. The form was fitted on a processor,
where over 42 candidates the median error was 4% (docs/measurements.md); the shares of the peaks on a
GPU are assumptions, and so the error bar is a factor of two until predictions have been measured there.
Source of the form: Williams et al., "Roofline" (2009), with sums in place of the maximum.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from petra_deploy.core.outcome import Figure, Work
from petra_deploy.core.target import Precision, Target

FACTOR = 2.0  # of a latency and of a ratio, either way
NOTE = f"by a latency model that nobody has measured on this target: bounds are a factor of {FACTOR:g} either way"
_OF_PEAK, _OF_BANDWIDTH = 0.4, 0.7  # what a network of middling layers reaches of a GPU's data sheet
_KERNEL_US = 4.0  # to start a kernel and wait for its end


def latency_ms(work: Sequence[Work], target: Target) -> float:
    """Of one call that does `work`. Raises ValueError for a target without peaks or bandwidth."""
    if target.bandwidth_gb_s is None:
        raise ValueError(f"{target.name} has no bandwidth")
    bandwidth = target.bandwidth_gb_s * 1e9 * _OF_BANDWIDTH
    seconds = 0.0
    for each in work:
        seconds += 2 * each.macs * _filled(each, target) / (peak(_precision(each), target) * _OF_PEAK)
        seconds += (each.weight_bytes + each.activation_bytes) / bandwidth
        seconds += 0.0 if each.joined else _KERNEL_US / 1e6
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
    """Operations a second. FP32 that no source gives is TF32's: half of FP16's; what the target lacks runs in FP32."""
    peaks = target.peaks_tflops
    if precision in peaks:
        return peaks[precision] * 1e12
    if "fp32" in peaks:
        return peaks["fp32"] * 1e12
    if "fp16" in peaks:
        return peaks["fp16"] / 2 * 1e12
    raise ValueError(f"{target.name} has no peaks")


def figure(value: float, unit: str) -> Figure:
    return Figure(value=value, unit=unit, low=value / FACTOR, high=value * FACTOR, n=0, origin="predicted", note=NOTE)


def unknown(unit: str, why: str) -> Figure:
    return Figure(value=None, unit=unit, n=0, origin="predicted", note=why)


def _precision(work: Work) -> Precision:
    """Depthwise convolutions have no use for matrix units."""
    return "fp32" if work.op == "DepthwiseConv" else work.precision


def _filled(work: Work, target: Target) -> float:
    """How much more is computed than asked for, with both widths filled up."""
    step = target.channel_steps.get(work.precision, 1)
    if work.op == "DepthwiseConv" or not work.inner or not work.outer:
        return 1.0
    return (math.ceil(work.inner / step) * step / work.inner) * (math.ceil(work.outer / step) * step / work.outer)
