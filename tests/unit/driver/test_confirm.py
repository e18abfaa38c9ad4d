"""Finalists are all measured before the test split is opened; the first in that order that holds there ships."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petra_deploy.core import machine
from petra_deploy.core.event import silent
from petra_deploy.core.job import CompileCheck, Job, Measure, Predict, Scored
from petra_deploy.core.outcome import Compiled, Done, Failed, Figure, Front, Goal, Outcome, Score
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.core.workload import SealedSplit, Split
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.confirm import ROUNDS, confirm, over_half, shared_scatter, with_half
from petra_deploy.driver.evaluate import Case
from petra_deploy.driver.place import Place
from petra_deploy.driver.session import Session
from tests.shipments import TARGET, make_shipment, ms


class Run:
    """Stands for the workers: speedups and test drops by the engine's key, and the jobs that came."""

    def __init__(self, outcome: Outcome, speedups: dict[str, float], drops: dict[str, float]) -> None:
        self.outcome, self.speedups, self.drops = outcome, speedups, drops
        self.jobs: list[Job[Any]] = []
        self.compiled: Done[Any] | Failed = Done(value=Compiled(compiler="TensorRT-RTX 1.7"), seconds=1)
        self.breaks_in = ("", 0)  # an engine, and the turn in which it fails

    def __call__(self, job: Job[Any]) -> Done[Any] | Failed:
        self.jobs.append(job)
        if isinstance(job, Measure):
            if job.engine.key == self.breaks_in[0] and self.turns(job.engine.key) == self.breaks_in[1]:
                return Failed(job="measure", kind="crash", reason="it broke")
            before = job.earlier.speedup.n if job.earlier else 0
            figure = Figure(value=self.speedups[job.engine.key], unit="ratio", n=before + job.rounds)
            assert self.outcome.measurement
            return Done(value=replace(self.outcome.measurement, speedups=(figure,)), seconds=1)
        if isinstance(job, Predict):
            figure = Figure(value=self.speedups[job.engine.key], unit="ratio", n=0, origin="predicted")
            assert self.outcome.measurement
            return Done(value=replace(self.outcome.measurement, speedups=(figure,)), seconds=1)
        if isinstance(job, CompileCheck):
            return self.compiled
        assert isinstance(job, Scored)
        if job.split_name != "test":
            raise AssertionError("only the test split is scored here")
        drop = self.drops.get(job.engine.key)
        points = Figure(value=drop, unit="points") if drop is not None else None
        return Done(value=Score(metric="accuracy", split="test", n=10, value=0.9, outputs="o", drop=points), seconds=1)

    def turns(self, key: str) -> int:
        return sum(job.engine.key == key for job in self.measured)

    @property
    def measured(self) -> list[Measure]:
        return [job for job in self.jobs if isinstance(job, Measure)]


@pytest.fixture
def shipment(store: Store, tmp_path: Path) -> Shipment:
    return make_shipment(store, tmp_path)


def judge(
    run: Run,
    shipment: Shipment,
    store: Store,
    *,
    left: float = 600.0,
    p50: float = 4.0,
    round_seconds: float = 3.0,
    sealed: bool = True,
    place: Place | None = None,
) -> Front:
    outcome = shipment.chosen
    assert outcome.engine
    assert outcome.measurement
    finalists = [
        replace(
            outcome,
            engine=replace(outcome.engine, key=key),
            strategy=Strategy(seed=index),
            test=None if sealed else shipment.test,
        )
        for index, key in enumerate(run.speedups)
    ]
    hot = replace(outcome.measurement.candidate[0], p50=ms(p50))
    baseline = replace(
        outcome, measurement=replace(outcome.measurement, candidate=(hot,)), round_seconds=round_seconds
    )  # fmt: skip
    split = Split(key="rows", rows=10, labelled=True)
    case = Case(
        workload=shipment.workload,
        place=place or Place(TARGET),
        batches=(1, 16),
        baseline=replace(outcome.engine, key="baseline"),
    )
    session = Session(
        store=store, run=run, on_event=silent, started=time.monotonic(), seconds=left, jailed=lambda: None
    )  # fmt: skip
    hidden = SealedSplit(split=split) if sealed else None
    return confirm(finalists, Goal(max_drop=1.0), case, baseline, hidden, session)


def test_the_fastest_that_holds_on_the_test_split_ships(shipment: Shipment, store: Store) -> None:
    run = Run(shipment.chosen, {"a": 5.0, "b": 9.0, "c": 7.0}, {"a": 0.1, "b": 1.6, "c": 0.9})
    front = judge(run, shipment, store)
    assert [o.engine.key for o in front.outcomes if o.engine] == ["b", "c", "a"]
    assert front.chosen is not None
    assert front.chosen.engine
    assert front.chosen.engine.key == "c"
    kinds = [job.kind for job in run.jobs]
    assert kinds == ["measure"] * 3 * ROUNDS + ["score"] * 4  # the baseline first


def test_finalists_are_measured_in_turns_and_each_round_in_a_process_of_its_own(
    shipment: Shipment, store: Store
) -> None:
    run = Run(shipment.chosen, {"a": 5.0, "b": 9.0, "c": 7.0}, {"a": 0.1, "b": 0.1, "c": 0.1})
    front = judge(run, shipment, store)
    assert [job.engine.key for job in run.measured] == ["a", "b", "c"] * ROUNDS
    assert {job.rounds for job in run.measured} == {1}
    assert len({job.seed for job in run.measured}) == ROUNDS
    assert [o.measurement.speedup.n for o in front.outcomes if o.measurement] == [ROUNDS] * 3


def test_a_finalist_that_fails_in_a_later_round_has_failed(shipment: Shipment, store: Store) -> None:
    run = Run(shipment.chosen, {"a": 5.0, "b": 9.0}, {"a": 0.1, "b": 0.1})
    run.breaks_in = ("b", 4)
    front = judge(run, shipment, store)
    assert front.chosen is not None
    assert front.chosen.engine
    assert front.chosen.engine.key == "a"
    (failed,) = [o for o in front.outcomes if o.failed]
    assert str(failed.failed) == "measure: it broke"
    assert run.turns("b") == 4


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Done(value=Compiled(compiler="TensorRT-RTX 1.7"), seconds=1), "compiles for compute capability 8.9 with"),
        (Done(value=Compiled(compiler="TensorRT-RTX 1.7", refused=("no Odd",)), seconds=1),
         "TensorRT-RTX 1.7 does not compile it for compute capability 8.9, TensorRT may: no Odd"),
        (Failed(job="compile_check", kind="timeout", reason="120 s are over"),
         "not compiled as a check for compute capability 8.9: 120 s are over"),
    ],
)  # fmt: skip
def test_what_the_compiler_says_of_an_absent_gpu_is_a_note_and_drops_nothing(
    answer: Done[Any] | Failed, said: str, shipment: Shipment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "installed", lambda runtime: runtime == "tensorrt_rtx")
    run = Run(shipment.chosen, {"a": 5.0}, {"a": 0.1})
    run.compiled = answer
    front = judge(run, shipment, store, place=Place(machine.resolve("l4"), why="is not here"))
    assert front.chosen is not None
    (note,) = front.chosen.notes
    assert note.startswith(said)
    run.jobs.clear()
    judge(
        run, shipment, store, place=Place(machine.resolve("h100"), why="is not here")
    )  # it compiles for none of these
    assert not [job for job in run.jobs if isinstance(job, CompileCheck)]


def test_rounds_that_agree_by_luck_do_not_make_a_narrower_interval_than_the_finalists_have_together(
    shipment: Shipment,
) -> None:
    def outcome(low: float, high: float) -> Outcome:
        measured = shipment.chosen.measurement
        assert measured
        figure = Figure(value=10.0, unit="ratio", low=low, high=high, n=9)
        return replace(shipment.chosen, measurement=replace(measured, speedups=(figure,)))

    narrow, wide = shared_scatter([outcome(9.9, 10.1), outcome(8.0, 12.5)])
    assert narrow.measurement
    assert wide.measurement
    figure = narrow.measurement.speedup
    assert figure.low == pytest.approx(10 * math.exp(-math.log(12.5 / 8) / 2 / math.sqrt(2)), rel=1e-3)
    assert figure.high == pytest.approx(10 * math.exp(math.log(12.5 / 8) / 2 / math.sqrt(2)), rel=1e-3)
    assert (wide.measurement.speedup.low, wide.measurement.speedup.high) == (8.0, 12.5)
    (alone,) = shared_scatter([outcome(9.9, 10.1)])
    assert alone.measurement
    assert alone.measurement.speedup.low == 9.9


def test_where_none_holds_the_nearest_is_named(shipment: Shipment, store: Store) -> None:
    front = judge(Run(shipment.chosen, {"a": 5.0, "b": 9.0}, {"a": 1.2, "b": 4.0}), shipment, store)
    assert front.chosen is None
    assert "5.00x, but drops 1.20 points" in front.why


def test_a_model_that_cannot_gain_is_told_so_and_nothing_slower_ships(shipment: Shipment, store: Store) -> None:
    front = judge(Run(shipment.chosen, {"a": 0.9, "b": 0.7}, {"a": 0.0, "b": 2.0}), shipment, store)
    assert front.chosen is None
    assert front.why.startswith("nothing tried beats the model as it came for sure, so it cannot gain here")
    assert "0.90x" in front.why


def test_a_slow_engine_runs_long_enough_for_a_p99_where_the_time_allows(shipment: Shipment, store: Store) -> None:
    speedups, drops = {"a": 5.0}, {"a": 0.0}
    for p50, left, seconds in ((4.0, 600.0, 1.2), (50.0, 600.0, 4.1), (500.0, 600.0, 6.0), (50.0, 20.0, 1.2)):
        run = Run(shipment.chosen, speedups, drops)
        judge(run, shipment, store, p50=p50, left=left)
        assert len(run.measured) == (ROUNDS if left > 100 else 7)
        for job in run.measured:
            assert job.seconds == pytest.approx(seconds)
            assert job.batches == (1, 16)


HALF = Strategy(steps=(Step(technique="half"),))


def measured(shipment: Shipment, strategy: Strategy, value: float, low: float, high: float) -> Outcome:
    found = shipment.chosen.measurement
    assert found
    figure = Figure(value=value, unit="ratio", low=low, high=high, n=9)
    return replace(shipment.chosen, strategy=strategy, measurement=replace(found, speedups=(figure,)))


def test_the_speedup_over_fp16_is_the_ratio_of_two_that_were_measured_in_turns(shipment: Shipment) -> None:
    pruned = measured(shipment, shipment.chosen.strategy, 12.0, 10.0, 14.4)
    half = measured(shipment, HALF, 3.0, 2.5, 3.6)
    first, second = over_half([pruned, half])
    assert first.measurement
    assert second.measurement
    (figure,) = first.measurement.over_half
    assert figure.value == pytest.approx(4.0)
    assert figure.high == pytest.approx(4.0 * math.exp(math.hypot(math.log(1.2), math.log(1.2))))
    assert second.measurement.over_half[0].value == pytest.approx(1.0)
    (alone,) = over_half([pruned])
    assert alone.measurement
    assert alone.measurement.over_half == ()


def test_on_a_gpu_the_model_as_it_came_in_fp16_goes_along(shipment: Shipment, store: Store) -> None:
    pruned = measured(shipment, shipment.chosen.strategy, 12.0, 10.0, 14.4)
    half = measured(shipment, HALF, 3.0, 2.5, 3.6)
    session = Session(store=store, run=Run(pruned, {}, {}), on_event=silent, started=time.monotonic(), seconds=9,
                      jailed=lambda: None)  # fmt: skip
    gpu = replace(TARGET, device="cuda", precisions=("fp32", "fp16"))
    case = Case(workload=shipment.workload, place=Place(gpu), batches=(1,))
    assert with_half([pruned], [half, pruned], case, session) == (pruned, half)
    assert with_half([half], [half, pruned], case, session) == (half,)
    assert with_half([pruned], [half], replace(case, place=Place(TARGET)), session) == (pruned,)


def test_finalists_that_were_judged_elsewhere_are_measured_only(shipment: Shipment, store: Store) -> None:
    run = Run(shipment.chosen, {"a": 5.0, "b": 9.0}, {})
    front = judge(run, shipment, store, sealed=False)
    assert {job.kind for job in run.jobs} == {"measure"}
    assert front.chosen is not None
    assert front.chosen.engine
    assert front.chosen.engine.key == "b"
