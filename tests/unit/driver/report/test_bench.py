"""What a person sees of a profile."""

from dataclasses import replace
from pathlib import Path

from petra_deploy.core import tails
from petra_deploy.driver.report.bench import table
from tests.unit.core.test_tails import MS, server
from tests.unit.driver.test_profiles import profile


def shown(tmp_path: Path) -> str:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    made = profile(tmp_path / "net.onnx")
    start = {"total_ns": 300 * MS, "open_ns": 20 * MS, "first_ns": 2 * MS, "peak_bytes": 70_000_000, "note": ""}
    fields = {
        "machine": {"cpu": "A Processor", "instructions": ["avx2"], "cores": 4, "affinity": 2, "memory_bytes": 2**34,
                    "governor": "performance", "virtual": True, "system": "Linux 6.1", "python": "3.11.7"},
        "cold": tails.cold([start]), "peak_memory": tails.peak([start]),
        "sittings": ({"energy": "energy is not known: no counters here"},), "warnings": ("a \x1b[31mwarning",),
    }  # fmt: skip
    return table(replace(made, measured=replace(made.measured, **fields)))


def test_tails_are_upper_bounds_and_too_few_calls_say_how_many_they_need(tmp_path: Path) -> None:
    lines = shown(tmp_path).splitlines()
    row = next(line for line in lines if line.startswith("single-stream"))
    assert row.count("<= ") == 3  # p90, p95, p99
    assert "n/a (needs 4603)" in row
    assert "2 ms" in row
    assert "3 ms" in row


def test_all_that_was_measured_is_in_it(tmp_path: Path) -> None:
    text = shown(tmp_path)
    assert "A Processor (avx2), 2 of 4 cores, 16.0 GiB, a virtual machine, governor performance, Linux 6.1" in text
    assert (
        "300 ms to the first answer, of which opening 20 ms, the first call 2 ms; 1 starts, files in the page cache"
        in text
    )
    assert "70 MB" in text
    assert "n/a: no counters here" in text
    assert "warning: a \ufffd[31mwarning" in text  # no escape code reaches the terminal


def test_energy_is_shown_where_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    made = profile(tmp_path / "net.onnx")
    metered = tails.scenario_of("offline", 2, 1, {}, [
        {"rows": 10, "elapsed_ns": MS, "energy": {"joules": 0.5, "rows": 10}}
    ])  # fmt: skip
    unheld = tails.scenario_of("server", 1, 1, {"limit_ms": 0.5}, [server(100.0, 1)])
    text = table(replace(made, measured=replace(made.measured, scenarios=(metered, unheld))))
    assert "0.05 J a row, offline, batch 2: of the whole package or card, what it uses idle included" in text
    assert "no rate tried kept p99 under 0.5 ms: at 100/s it may be 1 ms" in text
