import pytest

from petra_deploy.core.operators import Ran, RanAll
from petra_deploy.worker.measure.operators import Round, calls_for, contended, profile_of, without_profiler
from tests.unit.worker.artifact.test_attribution import Layers, graph


def test_the_profiler_takes_the_same_of_each_operator_and_never_more_than_the_shortest_took() -> None:
    assert without_profiler([10.0, 20.0, 3.0], whole_us=27.0) == ([8.0, 18.0, 1.0], 2.0)
    assert without_profiler([10.0, 20.0, 3.0], whole_us=3.0) == ([7.0, 17.0, 0.0], 3.0)
    assert without_profiler([10.0, 20.0], whole_us=40.0) == ([10.0, 20.0], 0.0)
    assert without_profiler([], whole_us=40.0) == ([], 0.0)


def test_calls_fill_the_seconds_within_bounds() -> None:
    assert calls_for(1000.0, 0.1) == 100
    assert calls_for(1.0, 0.1) == 200
    assert calls_for(1e5, 0.1) == 5
    assert calls_for(1e6, 0.1) == 2


def test_other_programs_on_the_core_are_told() -> None:
    quiet, busy = (Round(whole, 10.0, RanAll(operators=(), call_us=1.0)) for whole in (10.5, 30.0))
    assert contended([quiet, quiet, busy]) == ""
    assert "33% of the time" in contended([busy, quiet, busy])


def one(name: str, operator: str, us: float) -> Ran:
    return Ran(name=name, operator=operator, precision="fp32", us=us)


def test_rounds_of_the_same_operators_go_together_though_the_runtime_named_them_anew() -> None:
    rounds = [
        Round(30.0, 30.0, RanAll(operators=(one("MatMul_0", "MatMul", us), one(made, "Softmax", 2 * us)), call_us=40.0))
        for us, made in ((9.0, "Softmax_77"), (11.0, "Softmax_99"))
    ]
    found = profile_of("openvino", 1, rounds, Layers(graph()))
    first, second = found.operators
    assert (first.name, first.us) == ("MatMul_0", pytest.approx((9.0, 9.5)))
    assert (second.name, second.us) == ("Softmax_77", pytest.approx((18.0, 20.5)))
    assert (found.added.value, found.unattributed.value) == (pytest.approx(0.75), pytest.approx(1.5))
    assert first.share + second.share == pytest.approx(1)
