"""What Predict answers for a GPU that is not here."""

from dataclasses import replace
from typing import get_args

import pytest

from petra_deploy.core.job import Build, Predict
from petra_deploy.core.machine import resolve
from petra_deploy.core.outcome import Engine, ErrorBar, Measurement
from petra_deploy.core.store import Store
from petra_deploy.core.target import Computing, Moving, Starting
from petra_deploy.testing.inline import Inline
from tests.unit.worker.nets import CPU, add_graph, add_split


def engine(store: Store, *widths: int, batch: int | str = "batch") -> Engine:
    return Inline(store).must(Build(graph=add_graph(store, widths, batch=batch), target=CPU))


def predict(store: Store, candidate: Engine, baseline: Engine, target: str = "t4") -> Measurement:
    job = Predict(engine=candidate, baseline=baseline, target=resolve(target), split=add_split(store), batches=(1, 16))
    return Inline(store).must(job)


def test_a_smaller_network_is_predicted_to_be_faster_and_every_figure_says_predicted(store: Store) -> None:
    found = predict(store, engine(store, 16), engine(store, 64, 512, 512))
    assert [latency.batch for latency in found.candidate] == [1, 16]
    assert found.speedup.known() > 1.5
    for latency in (*found.candidate, *found.baseline):
        figures = (latency.p50, latency.p90, latency.p99, latency.first, latency.throughput)
        assert {figure.origin for figure in figures} == {"predicted"}
        assert latency.p99.value is None
    assert {figure.origin for figure in (*found.speedups, *found.over_half, found.load, found.peak_memory)} == {
        "predicted"
    }
    assert found.rounds == ""


def test_over_fp16_stands_beside_and_is_less(store: Store) -> None:
    found = predict(store, engine(store, 16), engine(store, 64, 512, 512))
    assert len(found.over_half) == 2
    for over_half, over_single in zip(found.over_half, found.speedups, strict=True):
        assert over_half.known() < over_single.known()


def test_bounds_are_those_of_the_ledger(store: Store) -> None:
    same = engine(store, 16, 16)
    bar = ErrorBar(latency=1.5, speedup=1.25, n=9, device="Tesla T4")
    found = Inline(store).must(
        Predict(engine=same, baseline=same, target=resolve("t4"), split=add_split(store), error=bar)
    )
    assert (found.speedup.low, found.speedup.high) == (0.8, 1.25)
    p50 = found.candidate[0].p50
    assert p50.high == pytest.approx(1.5 * p50.known())


def test_of_a_processor_with_rates_the_graph_is_counted_as_it_runs(store: Store) -> None:
    rates = {
        "attained_gops": dict.fromkeys(get_args(Computing), 100.0),
        "attained_gb_s": dict.fromkeys(get_args(Moving), 20.0),
        "operator_us": dict.fromkeys(get_args(Starting), 0.5),
    }
    known = replace(CPU, **rates)  # type: ignore[arg-type]
    made = engine(store, 16, 16)
    found = Inline(store).must(Predict(engine=made, baseline=made, target=known, split=add_split(store), batches=(1,)))
    operators = made.facts["operators"]
    assert isinstance(operators, dict)
    (work,) = found.work
    layout = sum(count for name, count in operators.items() if name.startswith("Reorder"))  # not work of the graph's
    assert work.operators == sum(operators.values()) - layout
    assert found.candidate[0].p50.known() > 0.5e-3 * (work.operators + 1)


def test_the_model_itself_is_as_fast_as_itself(store: Store) -> None:
    same = engine(store, 16, 16, batch=2)
    found = predict(store, same, same, "h100")
    assert found.speedup.known() == 1.0
    assert [latency.batch for latency in found.candidate] == [2]
