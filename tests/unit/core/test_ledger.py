"""What was predicted beside what was measured: kept, replaced, and made into an error bar."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from petra_deploy.core import files, ledger
from petra_deploy.core.errors import BadInput
from petra_deploy.core.ledger import Entry, Ledger
from petra_deploy.core.machine import resolve
from petra_deploy.core.outcome import ErrorBar, Figure, Latency, Measurement, Origin, WorkSum
from petra_deploy.core.target import Target

T4 = resolve("t4")
WORK = WorkSum(operators=3, macs={"fp32": 1e6}, weight_bytes=10, activation_bytes=20)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETRA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "shipped", lambda name: tmp_path / name)


def entry(artifact: str, latency: float = 1.0, speedup: float = 1.0, device: str = "Tesla T4", batch: int = 1) -> Entry:
    """Predicted so many times what was measured."""
    return Entry(
        date="2026-11-26", model="m", strategy="prune", artifact=artifact, batch=batch, work=WORK,
        predicted_ms=latency * 2, measured_ms=2, predicted_speedup=speedup * 3, measured_speedup=3, device=device,
    )  # fmt: skip


def measurement(origin: Origin, *batches: tuple[int, float, float], work: tuple[WorkSum, ...] = ()) -> Measurement:
    def figure(value: float | None, unit: str) -> Figure:
        return Figure(value=value, unit=unit, origin=origin)

    none = figure(None, "ms")
    sides = tuple(
        Latency(batch=b, p50=figure(ms, "ms"), p90=none, p99=none, first=none, throughput=none) for b, ms, _ in batches
    )
    return Measurement(
        candidate=sides, baseline=sides, speedups=tuple(figure(s, "ratio") for _, _, s in batches), load=none,
        peak_memory=none, work=work, rounds="",
        machine={"cpu": "Some CPU", "instructions": ["avx2"], "versions": {"onnxruntime": "1"}},
    )  # fmt: skip


def test_a_prediction_is_compared_with_a_measurement_at_each_batch_size_of_both() -> None:
    predicted = measurement("predicted", (1, 3.0, 2.0), (16, 30.0, 2.0), work=(WORK, WORK))
    (one,) = ledger.compare(
        predicted, measurement("measured", (1, 2.0, 4.0)), model="m", strategy="prune", artifact="a",
        versions={"driver": "2"},
    )  # fmt: skip
    assert (one.batch, one.latency_ratio, one.speedup_ratio) == (1, 1.5, 0.5)
    assert (one.device, one.instructions, one.versions) == ("Some CPU", ("avx2",), {"onnxruntime": "1", "driver": "2"})
    with pytest.raises(ValueError, match="not measured with predicted"):
        ledger.compare(measurement("measured", (1, 2.0, 4.0)), predicted, model="m", strategy="prune", artifact="a")


def test_an_entry_takes_the_place_of_the_same_artifact_on_the_same_device() -> None:
    ledger.append("t4", [entry("a", 1.5), entry("b", 1.5), entry("a", 1.5, batch=16)])
    path = ledger.append("t4", [entry("a", 3.0), entry("a", 2.0, device="another")])
    assert path == ledger.own("t4")
    found = [(e.artifact, e.batch, e.device, e.latency_ratio) for e in ledger.read("t4").entries]
    assert found == [("a", 1, "Tesla T4", 3.0), ("b", 1, "Tesla T4", 1.5), ("a", 16, "Tesla T4", 1.5),
                     ("a", 1, "another", 2.0)]  # fmt: skip


def test_several_writers_lose_nothing() -> None:
    threads = [threading.Thread(target=ledger.append, args=("t4", [entry(str(i))])) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.artifact for e in ledger.read("t4").entries} == {str(i) for i in range(20)}


def test_the_users_ledger_comes_before_the_shipped_one_and_begins_with_it(
    tmp_path: Path,
) -> None:
    shipped = tmp_path / "profiles" / "t4"
    shipped.mkdir(parents=True)
    files.write_json(shipped / "ledger.json", Ledger(target="t4", entries=(entry("shipped"),)))
    assert [e.artifact for e in ledger.read("t4").entries] == ["shipped"]
    ledger.append("t4", [entry("own")])
    assert [e.artifact for e in ledger.read("t4").entries] == ["shipped", "own"]
    assert len(files.read_json(shipped / "ledger.json", Ledger).entries) == 1


def test_fewer_than_five_artifacts_leave_the_assumption() -> None:
    assert ledger.error_bar(T4) == ErrorBar()
    ledger.append("t4", [entry(name, 1.1, batch=batch) for name in "abcd" for batch in (1, 16)])
    assert ledger.error_bar(T4) == ErrorBar(latency=3.0, speedup=3.0, n=0)


def test_nine_of_ten_comparisons_lie_within_the_error_bar_either_way() -> None:
    too_low, too_high = (
        [entry(str(i), 1 / 1.5, 1.25) for i in range(5)],
        [entry(str(5 + i), 1.2, 1.1) for i in range(4)],
    )
    ledger.append("t4", [*too_low, *too_high, entry("far off", 40.0, 40.0)])
    assert ledger.error_bar(T4) == ErrorBar(latency=1.5, speedup=1.25, n=10, device="Tesla T4")


def test_what_another_device_showed_does_not_count() -> None:
    ledger.append("t4", [entry(str(i), 1.5, device="NVIDIA L4") for i in range(9)])
    assert ledger.error_bar(T4).n == 0
    here = Target(name="cpu", runtime="onnxruntime", device="cpu", detect=True)
    ledger.append("cpu", [entry(str(i), 1.5, device="a processor that this is not") for i in range(9)])
    assert ledger.error_bar(here).n == 0
    assert ledger.error_bar(replace(here, detect=False)).n == 9


def test_a_broken_ledger_is_named() -> None:
    ledger.own("t4").parent.mkdir(parents=True)
    ledger.own("t4").write_text('{"target": "t4", "entries": [{"date": 3}]}')
    with pytest.raises(BadInput, match=r"ledger\.json is not a valid Ledger"):
        ledger.error_bar(T4)


def test_an_error_bar_says_where_it_is_from() -> None:
    assert ErrorBar().words == "within a factor of 3"
    assert "nobody has measured" in ErrorBar().note
    bar = ErrorBar(latency=1.5, speedup=1.25, n=10, device="Tesla T4")
    assert bar.words.startswith("within a factor of 1.25, latencies of 1.5 (")
    assert "the 10 that were measured on Tesla T4" in bar.words
    assert "nobody" not in bar.note


def test_every_ledger_that_ships_is_of_its_folder_and_names_its_device() -> None:
    for path in (Path(__file__).resolve().parents[3] / "profiles").glob("*/ledger.json"):
        found = files.read_json(path, Ledger)
        assert found.target == path.parent.name
        assert all(entry.device and entry.versions and entry.date for entry in found.entries)
