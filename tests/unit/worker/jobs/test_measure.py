import json

import pytest

from petra_deploy.core import files
from petra_deploy.core.job import Build, Measure
from petra_deploy.core.outcome import Engine, Failed, Measurement
from petra_deploy.core.rounds import figures
from petra_deploy.core.store import Store
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.measure import loop
from tests.unit.worker.nets import CPU, add_graph, add_split


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rounds: these tests are about what is reported, not about its precision."""
    monkeypatch.setattr(loop, "CALLS", 40)
    monkeypatch.setattr(loop, "RUN_SECONDS", 1e-4)
    monkeypatch.setattr(loop, "WARM_SECONDS", 1e-3)


def engine(store: Store, *widths: int, batch: int | str = "batch") -> Engine:
    return Inline(store).must(Build(graph=add_graph(store, widths, batch=batch), target=CPU))


def measure(store: Store, candidate: Engine, baseline: Engine, **fields: object) -> Measurement:
    job = Measure(engine=candidate, baseline=baseline, target=CPU, split=add_split(store), **fields)  # type: ignore[arg-type]
    return Inline(store).must(job)


def test_a_much_smaller_engine_is_measured_as_faster_at_every_batch_size(store: Store) -> None:
    found = measure(store, engine(store, 4), engine(store, 64, 64, 64), rounds=3, batches=(1, 16))
    assert [latency.batch for latency in found.candidate] == [1, 16]
    for speedup in found.speedups:
        assert speedup.known() > 3
        assert speedup.low is not None
    assert found.candidate[1].throughput.known() > found.baseline[1].throughput.known()
    assert found.load.known() > 0
    assert found.peak_memory.known() > 20e6


def test_the_baseline_against_itself_is_measured_like_any_other(store: Store) -> None:
    same = engine(store, 16, 16)
    found = measure(store, same, same, rounds=4, batches=(1,))
    assert found.speedup.known() == pytest.approx(1.0, abs=0.5)
    assert found.speedup.n == 4


def test_every_figure_can_be_made_again_from_the_rounds_that_are_kept(store: Store) -> None:
    found = measure(store, engine(store, 4), engine(store, 8), rounds=2, batches=(1,), seed=5)
    record = json.loads((store.path(found.rounds) / "rounds.json").read_text())
    again = figures(record["rounds"])
    assert again.speedups == found.speedups
    assert again.candidate == found.candidate
    assert record["schema"] == "petra-deploy/rounds/1"
    assert [(one["seed"], one["rounds"]) for one in record["sittings"]] == [(5, 2)]
    assert record["machine"]["cpu"] == found.machine["cpu"]


def test_rounds_of_several_sittings_make_one_measurement(store: Store) -> None:
    small, large = engine(store, 4), engine(store, 8)
    first = measure(store, small, large, rounds=2, batches=(1,), seed=5)
    both = measure(store, small, large, rounds=3, batches=(1,), seed=6, earlier=first)
    one, two = (json.loads((store.path(key) / "rounds.json").read_text()) for key in (first.rounds, both.rounds))
    assert two["rounds"][:2] == one["rounds"]
    assert figures(two["rounds"]).speedups == both.speedups
    assert both.speedup.n == 5
    assert [(each["seed"], each["rounds"]) for each in two["sittings"]] == [(5, 2), (6, 3)]
    assert both.peak_memory == first.peak_memory
    with pytest.raises(ValueError, match="of other engines"):
        measure(store, large, small, rounds=1, batches=(1,), earlier=first)


def test_the_answer_survives_json(store: Store) -> None:
    found = measure(store, engine(store, 4), engine(store, 8), rounds=2, batches=(1,))
    assert files.decode(json.loads(files.dumps(found)), Measurement, "the answer") == found


def test_a_model_with_a_fixed_batch_is_measured_at_that_size_only(store: Store) -> None:
    fixed = engine(store, 4, batch=2)
    found = measure(store, fixed, fixed, rounds=1, batches=(1, 16))
    assert [latency.batch for latency in found.candidate] == [2]


def test_more_rows_than_the_split_has_come_round_again(store: Store) -> None:
    found = measure(store, engine(store, 4), engine(store, 4), rounds=1, batches=(64,))
    assert found.candidate[0].batch == 64


def test_data_that_does_not_fit_the_engine_is_a_failure_with_its_reason(store: Store) -> None:
    import numpy as np

    from petra_deploy.core.samples import Samples
    from petra_deploy.core.workload import Split

    other = Split(key=store.add(Samples({"picture": np.ones((4, 3, 8, 8), np.float32)}).save), rows=4, labelled=False)
    one = engine(store, 4)
    failed = Inline(store)(Measure(engine=one, baseline=one, target=CPU, split=other))
    assert isinstance(failed, Failed)
    assert failed.kind == "input"
    assert "no input 'image'; it has picture" in failed.reason
