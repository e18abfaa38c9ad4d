"""Verdicts: what the test says, that text and verdict agree, and that looking early gains nothing."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petra_deploy.core import files
from petra_deploy.core.comparison import Comparison, Gate
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import EngineFacts
from petra_deploy.core.verdict import judge, of_latency, overall, share, undecided

ENGINE = EngineFacts(name="net", sha256="0" * 64, bytes=1000, runtime="onnxruntime")


def a_round(log_ratio: float, *, processor: float | None = None, batch: int = 1, threads: int = 1) -> dict[str, Any]:
    """A round in which every call of the new engine takes exp(log_ratio) times a millisecond."""
    clock, work = math.exp(log_ratio), math.exp(log_ratio if processor is None else processor)
    calls = {
        "baseline": {"hot_ns": [1_000_000] * 5, "cpu_ns": [1_000_000] * 5},
        "candidate": {"hot_ns": [round(1e6 * clock)] * 5, "cpu_ns": [round(1e6 * work)] * 5},
    }
    return {"seed": 0, "threads": threads, "batches": {str(batch): calls}}


def rounds(ratio: float, count: int, sd: float = 0.01, seed: int = 0, **rest: Any) -> list[dict[str, Any]]:
    noise = np.random.default_rng(seed).normal(0, sd, count)
    return [a_round(math.log(ratio) + float(x), **rest) for x in noise]


def comparison(made: list[dict[str, Any]], gates: tuple[Gate, ...], **rest: Any) -> Comparison:
    return Comparison(created="", target="cpu", base=ENGINE, new=rest.pop("new", ENGINE), paired=True, gates=gates,
                      rounds=tuple(made), **rest)  # fmt: skip


def test_tested_gates_share_alpha_and_counted_ones_take_none() -> None:
    gates = share(latency=0.05, batches=(1, 16), size=0.1, drop=0.5)
    assert [(g.what, g.batch) for g in gates] == [("latency", 1), ("latency", 16), ("size", 1), ("metric", 1)]
    assert [g.alpha for g in gates if g.what != "size"] == pytest.approx([0.05 / 3] * 3)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.12, "fail"), (0.5, "pass"), (1.0, "pass"), (1.05, "inconclusive")])
def test_a_gate_on_latency(ratio: float, verdict: str) -> None:
    (found,) = judge(comparison(rounds(ratio, 8, seed=3), share(latency=0.05)))
    assert found.verdict == verdict
    assert found.figure.low is not None
    assert found.figure.high is not None
    assert found.figure.low < ratio < found.figure.high


@settings(deadline=None, max_examples=50)
@given(
    logs=st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=20),
    limit=st.floats(0, 0.2),
    alpha=st.sampled_from([0.05, 0.05 / 3]),
)
def test_the_interval_and_the_verdict_never_disagree(logs: list[float], limit: float, alpha: float) -> None:
    found = of_latency(Gate(what="latency", limit=limit, alpha=alpha), [a_round(x) for x in logs])
    low = 0.0 if found.figure.low is None else found.figure.low
    high = math.inf if found.figure.high is None else found.figure.high
    nearly = 1e-6  # times are whole nanoseconds, bounds are bisected
    if found.verdict == "fail":
        assert low >= 1 + limit - nearly
    elif found.verdict == "pass":
        assert high <= 1 + limit + nearly
    else:
        assert low <= 1 + limit + nearly
        assert high >= 1 + limit - nearly or len(logs) < 4


def test_rounds_in_which_other_programs_took_the_core_are_judged_by_processor_time() -> None:
    made = [*rounds(1.2, 5, processor=0.0), *rounds(1.0, 3)]
    (found,) = judge(comparison(made, share(latency=0.05)))
    assert found.verdict == "pass"
    assert found.figure.value == pytest.approx(1.0, abs=0.01)
    assert found.figure.note == "contended: 5 of 8 rounds by processor time"
    several = [{**one, "threads": 2} for one in rounds(1.2, 8, processor=0.0)]  # whose processor time says nothing
    assert judge(comparison(several, share(latency=0.05)))[0].verdict == "fail"


def test_processor_time_can_deny_a_verdict_of_the_clock() -> None:
    made = rounds(1.09, 8, sd=0.001, processor=math.log(1.045))
    (found,) = judge(comparison(made, share(latency=0.05)))
    assert found.verdict == "inconclusive"
    assert "processor time 1.045" in found.why
    assert found.figure.low == pytest.approx(1.045, abs=1e-3)


def test_a_decided_batch_size_needs_no_more_rounds() -> None:
    gates = share(latency=0.05, batches=(1, 16))
    one = [r["batches"] | a_round(math.log(1.05) + 0.01 * (-1) ** i, batch=16)["batches"]
           for i, r in enumerate(rounds(1.0, 8))]  # fmt: skip
    left = undecided(gates, [{"threads": 1, "batches": batches} for batches in one])
    assert [gate.batch for gate in left] == [16]


def test_sizes_are_counted() -> None:
    gates = share(latency=None, size=0.1)
    grown = replace(ENGINE, bytes=1101)
    assert [judge(comparison([], gates, new=new))[0].verdict for new in (ENGINE, grown)] == ["pass", "fail"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.6, 1.4, "fail"), (-0.2, 0.4, "pass"), (0.3, 0.9, "inconclusive")]
)
def test_a_gate_on_the_metric(low: float, high: float, verdict: str) -> None:
    drop = Figure(value=(low + high) / 2, unit="points", low=low, high=high, n=400)
    (found,) = judge(comparison([], share(latency=None, drop=0.5), drop=drop, metric="accuracy"))
    assert found.verdict == verdict
    assert "accuracy" in found.why


def test_a_metrics_interval_widens_with_the_gates_that_share_alpha() -> None:
    drop = Figure(value=0.0, unit="points", low=-1.0, high=1.0, n=400)
    alone, shared = (
        judge(comparison(rounds(1.0, 8), gates, drop=drop))[-1].figure.high or 0.0
        for gates in (share(latency=None, drop=2.0), share(latency=0.05, drop=2.0))
    )
    assert alone == pytest.approx(1.0)
    assert shared == pytest.approx(2.2414 / 1.95996, rel=1e-4)


def test_one_failing_gate_fails_the_whole() -> None:
    gates = share(latency=0.05, size=0.1)
    found = judge(comparison(rounds(1.0, 8), gates, new=replace(ENGINE, bytes=2000)))
    assert [v.verdict for v in found] == ["pass", "fail"]
    assert overall(found) == "fail"
    assert overall(judge(comparison(rounds(1.05, 6), share(latency=0.05)))) == "inconclusive"


def test_verdicts_of_a_file_are_the_same_to_the_byte(tmp_path: Any) -> None:
    made = comparison(rounds(1.031, 9), share(latency=0.05, size=0.1))
    made = replace(made, verdicts=judge(made))
    files.write_json(tmp_path / "gate.json", made)
    again = files.read_json(tmp_path / "gate.json", Comparison)
    assert files.dumps(replace(again, verdicts=judge(again))) == files.dumps(made)


def test_records_of_two_times_are_taken_relative_to_their_yardsticks() -> None:
    made = rounds(1.5, 8)  # the machine ran at two thirds of its speed
    for one in made:
        calls = one["batches"]["1"]
        calls["yardsticks"] = {"baseline": {"hot_ns": [400_000]}, "candidate": {"hot_ns": [600_000]}}
        for stick in calls["yardsticks"].values():
            stick["cpu_ns"] = stick["hot_ns"]
    (found,) = judge(comparison(made, share(latency=0.05)))
    assert found.verdict == "pass"
    assert found.figure.value == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("verdict", ["fail", "pass"])
@pytest.mark.parametrize(("runs", "most"), [(60, 6), pytest.param(300, 16, marks=pytest.mark.slow)])
def test_looking_after_every_round_and_stopping_at_the_first_pleasing_one_gains_nothing(
    runs: int, most: int, verdict: str
) -> None:
    """At the gate itself: 2.5% may please, whoever looks how often; `most` of the runs by chance (p < 0.1%)."""
    (gate,) = share(latency=0.05)
    pleased = 0
    for seed in range(runs):
        made = rounds(1.05, 20, seed=1000 + seed)
        pleased += any(of_latency(gate, made[:n]).verdict == verdict for n in range(4, 21))
    assert pleased <= most
