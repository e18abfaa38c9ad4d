from collections.abc import Mapping

import pytest

from petra_deploy.core import stats
from petra_deploy.core.operators import How, Operator, OpsProfile
from petra_deploy.driver.layers import changes, grouped, slower, stayed_float

Times = tuple[float, ...]
_ZERO = stats.mean([0.0, 0.0], "us")


def op(layer: str, operator: str, us: Times, precision: str = "fp32", how: How = "own") -> Operator:
    return Operator(name=operator, operator=operator, precision=precision, layers=tuple(layer.split("+")), how=how,
                    us=us, time=stats.mean(us, "us"), share=0.1)  # fmt: skip


def profile(*operators: Operator, quantized: tuple[str, ...] = ()) -> OpsProfile:
    layers = tuple(dict.fromkeys(name for o in operators for name in o.layers))
    return OpsProfile(
        runtime="onnxruntime", batch=1, operators=operators, layers=layers, quantized=quantized,
        whole_us=(100.0,) * 4, profiled_us=(110.0,) * 4, whole=_ZERO, profiled=_ZERO, added=_ZERO, unattributed=_ZERO,
    )  # fmt: skip


BASE = profile(
    op("conv1", "QLinearConv", (41.0, 40.0, 42.0, 41.0), "int8"), op("conv2", "Conv", (90.0, 91.0, 89.0, 90.0)),
    op("fc", "Gemm", (10.0, 30.0, 5.0, 15.0)),
)  # fmt: skip
NEW = profile(
    op("conv1", "Conv", (80.0, 79.0, 82.0, 81.0)), op("conv1", "Cast", (8.0, 8.0, 8.0, 8.0), how="converts"),
    op("conv2", "QLinearConv", (30.0, 31.0, 29.0, 30.0), "int8"), op("fc", "Gemm", (30.0, 12.0, 25.0, 9.0)),
    quantized=("conv1", "conv2"),
)  # fmt: skip


def by_layer(*profiles: OpsProfile) -> Mapping[str, object]:
    return {change.layer: change for change in changes(*profiles)}


def test_a_layer_that_lost_says_by_what_and_how_much() -> None:
    (change,) = slower(BASE, NEW)
    assert change.layer == "conv1"
    assert change.sentence.startswith("conv1: QLinearConv 41 us -> Conv 88 us, +48 us (+")
    assert change.sentence.endswith(", of it conversions +8 us (stayed float)")
    assert change.base is not None
    assert change.new is not None
    assert (change.base.precision, change.new.precision, change.new.conversions.value) == ("int8", "fp32", 8.0)


def test_what_scatters_from_round_to_round_is_not_called_slower() -> None:
    found = {change.layer: change for change in changes(BASE, NEW)}
    assert found["fc"].difference.known() > 0
    assert not found["fc"].slower
    assert found["conv2"].faster
    assert [change.layer for change in changes(BASE, NEW)] == ["conv2", "conv1", "fc"]  # the longest first


def test_the_more_layers_there_are_the_more_it_takes_to_call_one_slower() -> None:
    few = [op("conv", "Conv", (10.0, 10.5, 10.2, 10.4))]
    same = [op(f"l{i}", "Relu", (1.0, 1.0, 1.0, 1.0)) for i in range(200)]
    later = [op("conv", "Conv", (11.2, 11.4, 12.0, 11.0))]
    (alone,) = changes(profile(*few), profile(*later))
    among = next(c for c in changes(profile(*few, *same), profile(*later, *same)) if c.layer == "conv")
    assert alone.slower
    assert alone.difference.value == among.difference.value
    assert not among.slower


def test_what_one_runtime_fused_is_compared_as_one() -> None:
    new = profile(op("a+b", "Fused", (5.0, 5.0, 5.0, 5.0)), op("c", "Conv", (1.0, 1.0, 1.0, 1.0)))
    base = profile(*(op(name, "Conv", (3.0, 3.0, 3.0, 3.0)) for name in "abc"))
    assert grouped([new, base]) == [("a", "b"), ("c",)]
    first, _ = changes(base, new)
    assert (first.layer, first.difference.value) == ("a + b", -1.0)


def test_a_part_that_only_one_of_them_names_goes_to_the_module_that_both_name() -> None:
    base = profile(op("attention", "MatMul", (3.0,) * 4), op("attention.out", "Gemm", (2.0,) * 4))
    new = profile(op("attention", "QGemm", (4.0,) * 4, "int8"))
    (change,) = changes(base, new)
    assert (change.layer, change.difference.value) == ("attention", -1.0)


def test_a_layer_of_one_engine_only_is_neither_faster_nor_slower() -> None:
    found = {c.layer: c for c in changes(profile(op("a", "Conv", (9.0,) * 4)), profile(op("b", "Conv", (1.0,) * 4)))}
    assert (found["a"].why, found["b"].why) == ("only before", "only after")
    assert not any(change.slower or change.faster for change in found.values())


def test_without_a_base_there_is_no_difference() -> None:
    assert {change.difference.value for change in changes(None, NEW)} == {None}
    assert {change.base for change in changes(None, NEW)} == {None}


def test_what_stayed_float_has_its_reason_and_a_float_engine_has_none() -> None:
    assert stayed_float(NEW) == (
        "conv1 (Conv 88 us): model.onnx has its weights in integers, and onnxruntime computes it in float",
        "fc (Gemm 19 us): model.onnx has it so, the strategy left it",
    )
    assert stayed_float(profile(op("a", "Conv", (9.0,) * 4))) == ()
    norm = op("norm", "LayerNormalization", (1.0,) * 4)
    assert stayed_float(profile(norm, op("b", "QGemm", (1.0,) * 4, "int8"))) == ()


@pytest.mark.parametrize("rounds", [2, 4, 8])
def test_difference_is_the_mean_over_rounds_of_paired_differences(rounds: int) -> None:
    base, new = (tuple(10.0 * i + d for i in range(rounds)) for d in (0.0, 3.0))
    (change,) = changes(profile(op("a", "Conv", base)), profile(op("a", "Conv", new)))
    assert change.difference.value == pytest.approx(3)
    assert change.difference.low == pytest.approx(3, abs=0.1)  # the pairs cancel what the rounds have in common
