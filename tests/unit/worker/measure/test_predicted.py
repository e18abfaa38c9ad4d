"""Milliseconds from counted work: what they follow from, and that they call themselves predicted."""

from dataclasses import replace

import pytest

from petra_deploy.core.machine import resolve, targets
from petra_deploy.core.outcome import ErrorBar, Work
from petra_deploy.core.target import Target
from petra_deploy.driver.place import predictable
from petra_deploy.worker.measure import predicted

T4 = resolve("t4")
LAYER = Work(op="Conv", macs=1e9, weight_bytes=4e6, activation_bytes=2e6, precision="fp32", inner=576, outer=64)


def test_a_layer_takes_its_arithmetic_its_bytes_and_its_start() -> None:
    shares = predicted.Shares(of_peak=0.4, of_bandwidth=0.7, kernel_us=4.0, call_us=50.0)
    arithmetic = 2 * 1e9 / (8.1e12 * 0.4)
    moving = 6e6 / (320e9 * 0.7)
    layer = 1e3 * (arithmetic + moving + 4e-6)
    assert predicted.latency_ms([LAYER], T4, shares) == pytest.approx(layer + 0.05)
    assert predicted.latency_ms([LAYER, LAYER], T4, shares) == pytest.approx(2 * layer + 0.05)


def test_int8_is_faster_than_fp16_and_that_than_fp32() -> None:
    times = [predicted.latency_ms([replace(LAYER, precision=p)], T4) for p in ("int8", "fp16", "fp32")]  # type: ignore[arg-type]
    assert times == sorted(times)
    assert times[2] > 3 * times[1]


def test_halved_takes_fp32_to_fp16_and_leaves_the_rest() -> None:
    whole = replace(LAYER, precision="int8")
    half, same = predicted.halved([LAYER, whole])
    assert (half.precision, half.weight_bytes, half.activation_bytes) == ("fp16", 2e6, 1e6)
    assert same == whole


def test_what_joins_the_operator_before_it_starts_nothing() -> None:
    relu = Work(op="Relu", macs=0, weight_bytes=0, activation_bytes=0, precision="fp32", joined=True)
    call = predicted.latency_ms([], T4)
    assert predicted.latency_ms([relu], T4) == call > 0
    started = predicted.latency_ms([replace(relu, joined=False)], T4)
    assert started - call == pytest.approx(predicted.ASSUMED.kernel_us / 1e3)


def test_narrow_layers_are_filled_up_and_depthwise_ones_use_no_matrix_units() -> None:
    narrow = replace(LAYER, precision="int8", inner=9, outer=9, weight_bytes=0, activation_bytes=0)
    full = replace(narrow, inner=16, outer=16)
    start = (predicted.ASSUMED.kernel_us + predicted.ASSUMED.call_us) / 1e3
    ratio = (predicted.latency_ms([narrow], T4) - start) / (predicted.latency_ms([full], T4) - start)
    assert ratio == pytest.approx((16 / 9) ** 2)
    depthwise = replace(narrow, op="DepthwiseConv")
    assert predicted.latency_ms([depthwise], T4) == pytest.approx(
        1e3 * 2e9 / (8.1e12 * predicted.ASSUMED.of_peak) + start
    )


def test_what_the_target_lacks_runs_in_fp32_and_fp32_without_a_source_is_tf32() -> None:
    assert predicted.peak("fp8", T4) == 8.1e12
    assert predicted.peak("fp32", replace(T4, peaks_tflops={"fp16": 100.0})) == 50e12
    assert predicted.peak("fp32", T4) == 8.1e12  # Turing has no TF32
    assert predicted.peak("fp32", resolve("h200")) == resolve("h200").peaks_tflops["fp16"] / 2 * 1e12
    with pytest.raises(ValueError, match="no peaks"):
        predicted.peak("int8", replace(T4, peaks_tflops={}))
    with pytest.raises(ValueError, match="no bandwidth"):
        predicted.latency_ms([LAYER], Target(name="odd", runtime="tensorrt", device="cuda"))


H200 = {  # milliseconds of a call of ResNet-18 at 32x32, by precision and batch: profiles/h200
    ("fp16", 1): 0.2572, ("fp16", 16): 0.3745, ("fp32", 1): 0.3204, ("fp32", 16): 0.4716,
}  # fmt: skip


@pytest.mark.parametrize(("precision", "batch"), H200)
def test_what_was_measured_on_an_h200_is_predicted_within_a_fifth(precision: str, batch: int) -> None:
    """20 convolutions, a pooling, a linear layer and a cast: what the assumed shares were read off."""
    size = 1 if precision == "fp16" else 2
    layers = [
        Work(op="Conv", macs=555.4e6 / 20 * batch, weight_bytes=22.3e6 / 20 * size,
             activation_bytes=6.3e6 / 20 * size * batch, precision=precision, inner=576, outer=64)  # type: ignore[arg-type]
    ] * 20  # fmt: skip
    rest = [Work(op="Other", macs=0, weight_bytes=0, activation_bytes=0, precision="fp32")] * 3
    found = predicted.latency_ms([*layers, *rest], resolve("h200"))
    assert found == pytest.approx(H200[precision, batch], rel=0.2)


def test_figures_say_what_they_are() -> None:
    figure = predicted.figure(3.0, "ms", ErrorBar())
    assert (figure.low, figure.high, figure.origin, figure.n) == (1.0, 9.0, "predicted", 0)
    known = ErrorBar(latency=1.5, speedup=1.2, n=9, device="Tesla T4")
    assert predicted.figure(3.0, "1/s", known).high == 4.5
    assert predicted.figure(3.0, "ratio", known).high == pytest.approx(3.6)
    assert "the 9 that were measured on Tesla T4" in predicted.figure(3.0, "ratio", known).note
    assert predicted.unknown("ms", "not predicted").value is None


@pytest.mark.parametrize("name", [n for n in targets() if resolve(n).device == "cuda"])
def test_every_gpu_that_ships_can_be_predicted(name: str) -> None:
    target = resolve(name)
    assert predictable(target)
    assert 0 < predicted.latency_ms([LAYER], target) < 10
