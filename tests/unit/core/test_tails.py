"""Figures from recorded rounds: what each is made of, and that they can be made again."""

import json
from typing import Any

import numpy as np
import pytest

from petra_deploy.core import files, tails
from petra_deploy.core.profile import Benched

MS = 1_000_000


def stream(seed: int, calls: int = 500, ms: float = 2.0, yardstick: float = 0.5) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    hot = (ms * MS * random.uniform(0.9, 1.1, calls)).astype(int).tolist()
    return {
        "seed": seed, "load_ns": 5 * MS, "order": ["engine", "yardstick"],
        "engine": {"first_ns": [3 * MS], "hot_ns": hot, "cpu_ns": hot},
        "yardstick": {"first_ns": [MS], "hot_ns": [int(yardstick * MS)] * 50, "cpu_ns": [int(yardstick * MS)] * 50},
    }  # fmt: skip


def server(rate: float, ms: float, phase: str = "confirm", queries: int = 500, slow: int = 0) -> dict[str, Any]:
    latency = [int(ms * MS)] * (queries - slow) + [int(100 * ms * MS)] * slow
    return {
        "phase": phase,
        "rate": rate,
        "seed": 0,
        "load_ns": 0,
        "due_ns": [],
        "latency_ns": latency,
        "service_ns": [],
    }


def test_a_streams_tails_are_of_all_calls_and_first_calls_are_apart() -> None:
    found = tails.scenario_of("single-stream", 4, 1, {}, [stream(0), stream(1)])
    assert found.latency is not None
    assert found.latency.p50.n == 1000
    assert found.latency.p50.known() == pytest.approx(2.0, abs=0.05)
    assert found.latency.p99.known() < found.latency.p99.high < 2.2  # type: ignore[operator]
    assert (found.latency.p999.value, found.latency.p999.note) == (None, "needs 4603")
    assert found.latency.first is not None
    assert found.latency.first.value == 3.0
    assert found.throughput is not None
    assert found.throughput.value == pytest.approx(4 / 2e-3, rel=0.03)


def test_the_server_reports_the_highest_rate_confirmed_and_the_lowest_that_failed_above_it() -> None:
    rounds = [
        server(50.0, 1, "search"), server(90.0, 30, "search"), server(60.0, 1, slow=20), server(60.0, 1),
        server(55.0, 1), server(55.0, 2), server(40.0, 1),
    ]  # fmt: skip
    found = tails.scenario_of("server", 1, 1, {"limit_ms": 10}, rounds)
    assert found.throughput is not None
    assert found.latency is not None
    assert (found.throughput.value, found.throughput.low, found.throughput.high) == (55.0, 55.0, 60.0)
    assert found.throughput.n == found.latency.p99.n == 1000
    assert found.latency.first is None


def test_a_server_whose_bound_passes_the_limit_has_no_rate_though_its_p99_does_not() -> None:
    """5 of 1000 beyond: p99 as seen is kept, its upper bound is not known to be."""
    rounds = [server(50.0, 1, slow=4), server(50.0, 1, slow=4)]
    assert not tails.beyond(rounds, 10)
    assert not tails.kept(rounds, 10)
    found = tails.scenario_of("server", 1, 1, {"limit_ms": 10}, rounds)
    assert found.throughput is not None
    assert found.throughput.value is None
    assert "no rate tried kept p99 under 10 ms" in found.throughput.note
    assert found.latency is not None
    few = tails.scenario_of("server", 1, 1, {"limit_ms": 10}, [server(50.0, 1, queries=30)]).throughput
    assert few is not None
    assert (few.value, few.note) == (None, "needs 459, to say whether p99 keeps 10 ms at 50/s")


def test_energy_is_joules_a_row_and_says_that_idle_is_in_it() -> None:
    rounds = [{**stream(seed), "energy": {"joules": 3.0 + seed, "rows": 100}} for seed in range(3)]
    energy = tails.scenario_of("single-stream", 1, 1, {}, rounds).energy
    assert energy is not None
    assert (energy.value, energy.low, energy.high, energy.unit) == (0.04, 0.03, 0.05, "J")
    assert "idle" in energy.note
    assert tails.scenario_of("single-stream", 1, 1, {}, [{**stream(0), "energy": None}]).energy is None


def test_every_figure_of_a_file_is_made_again_from_the_file() -> None:
    start = {"total_ns": 300 * MS, "import_ns": MS, "open_ns": 20 * MS, "first_ns": MS, "peak_bytes": 7, "note": ""}
    starts = [start, {**start, "total_ns": 310 * MS, "peak_bytes": 9}]
    offline = [{"seed": s, "load_ns": 1, "rows": 1000 + s, "calls": 10, "elapsed_ns": 333_333_333} for s in range(3)]
    made = Benched(
        scenarios=(
            tails.scenario_of("single-stream", 1, 1, {"seed": 3}, [stream(0), stream(1)]),
            tails.scenario_of("offline", 16, 2, {}, offline),
            tails.scenario_of("server", 1, 1, {"limit_ms": 10.0}, [server(7 / 3, 1)]),
        ),
        cold=tails.cold(starts), peak_memory=tails.peak(starts), sittings=({"starts": starts},),
    )  # fmt: skip
    read = files.decode(json.loads(files.dumps(made)), Benched, "the file")
    assert read == made
    assert files.dumps(tails.again(read)) == files.dumps(read)
    assert read.cold is not None
    assert (read.cold.total.value, read.cold.load.value) == (305.0, 20.0)
    assert read.peak_memory is not None
    assert read.peak_memory.value == 9


def test_noise_is_said_with_what_to_do() -> None:
    shared, faster = stream(0), stream(1, yardstick=0.7)
    for one in (shared, faster):
        one["engine"]["cpu_ns"] = [t // 2 for t in one["engine"]["hot_ns"]]
    contended, unsteady = tails.noise([tails.scenario_of("single-stream", 1, 1, {}, [shared, faster])])
    assert "2.01 ms by the clock and 1 ms of processor time" in contended
    assert "moved by 40% between rounds" in unsteady
    assert tails.noise([tails.scenario_of("single-stream", 1, 1, {}, [stream(0), stream(1)])]) == ()
