import json

import pytest

from petra_deploy.core import files, tails
from petra_deploy.core.job import Bench, Build
from petra_deploy.core.profile import SCENARIOS, Benched
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


def bench(store: Store, *, batch: int | str = "batch", **fields: object) -> Benched:
    engine = Inline(store).must(Build(graph=add_graph(store, (8, 8), batch=batch), target=CPU))
    job = Bench(engine=engine, target=CPU, split=add_split(store), rounds=2, seconds=0.05, seed=5, **fields)  # type: ignore[arg-type]
    return Inline(store).must(job)


def test_every_scenario_is_measured_at_its_batch_sizes_and_made_again_from_its_rounds(store: Store) -> None:
    found = bench(store, scenarios=SCENARIOS, batches=(1, 4), streams=3, limit_ms=50.0)
    assert [(s.name, s.batch) for s in found.scenarios] == [
        ("single-stream", 1), ("single-stream", 4), ("multi-stream", 3), ("offline", 1), ("offline", 4), ("server", 1),
    ]  # fmt: skip
    assert all(s.threads == 1 for s in found.scenarios)
    read = files.decode(json.loads(files.dumps(found)), Benched, "the answer")
    assert read == found
    assert files.dumps(tails.again(read)) == files.dumps(found)
    server = found.scenarios[-1]
    assert (server.settings["limit_ms"], server.settings["limit"]) == (50.0, "given")
    assert found.scenarios[0].settings == {"seed": 5, "yardstick": "yardstick/1"}


def test_the_cold_start_is_of_new_processes_and_counts_all_from_their_start(store: Store) -> None:
    found = bench(store, scenarios=("offline",), batches=(1,))
    starts = found.sittings[0]["starts"]
    assert len(starts) == 5
    for one in starts:
        assert one["total_ns"] > one["import_ns"] + one["open_ns"] + one["first_ns"] > 0
    assert found.cold is not None
    assert found.cold.total.n == 5
    assert found.peak_memory is not None
    assert found.peak_memory.known() > 20e6


def test_a_model_with_a_fixed_batch_answers_a_query_in_as_many_calls_as_it_takes(store: Store) -> None:
    found = bench(store, batch=2, scenarios=("single-stream", "multi-stream", "server"), batches=(1, 16), streams=5)
    single, several, server = found.scenarios
    assert (single.batch, several.batch, server.batch) == (2, 5, 1)
    assert several.settings["calls_a_query"] == 3
    assert server.settings["limit"] == "5 x p50"
    assert single.latency is not None
    assert server.settings["limit_ms"] == 5 * single.latency.p50.known()


def test_what_a_reader_must_know_of_the_machine_is_kept(store: Store) -> None:
    found = bench(store, scenarios=("offline",), batches=(1,))
    sitting = found.sittings[0]
    assert sitting["before"]["jiffies"] <= sitting["after"]["jiffies"]
    assert sitting["energy"]
    assert found.machine["cpu"]
    assert found.inputs == "data"
