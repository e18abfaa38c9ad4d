"""What Predict answers for a GPU that is not here."""

from petra_deploy.core.job import Build, Predict
from petra_deploy.core.machine import resolve
from petra_deploy.core.outcome import Engine, Measurement
from petra_deploy.core.store import Store
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


def test_the_model_itself_is_as_fast_as_itself(store: Store) -> None:
    same = engine(store, 16, 16, batch=2)
    found = predict(store, same, same, "h100")
    assert found.speedup.known() == 1.0
    assert [latency.batch for latency in found.candidate] == [2]
