"""One strategy, evaluated: the four jobs in their order. Knows no technique and no runtime.

    outcome = evaluate(strategy, FULL, case, run, limits)

A failure at any job is the outcome, with its reason; nothing stands in for what failed.
"""

import time
from dataclasses import dataclass, replace
from typing import TypeVar

from petra_deploy.core.job import Build, Job, Limits, Measure, Predict, Run, Scored, Transform
from petra_deploy.core.outcome import Engine, Failed, Measurement, Outcome
from petra_deploy.core.strategy import Fidelity, Strategy
from petra_deploy.core.workload import Split, Workload
from petra_deploy.driver.place import Place

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What every evaluation of a run shares. Without `baseline` the strategy is the baseline."""

    workload: Workload
    place: Place
    batches: tuple[int, ...]
    device: str = "cpu"
    seed: int = 0
    baseline: Engine | None = None
    reference: str | None = None  # the key of the baseline's outputs on the selection split


class _Stopped(Exception):
    def __init__(self, failed: Failed) -> None:
        self.failed = failed


def evaluate(strategy: Strategy, fidelity: Fidelity, case: Case, run: Run, limits: Limits) -> Outcome:
    """Compress, export, build, measure against the baseline, score on the selection split."""
    start = time.monotonic()
    found: dict[str, object] = {}

    def must(job: Job[A]) -> A:
        done = run(job)
        if isinstance(done, Failed):
            raise _Stopped(done)
        return done.value

    try:
        graph = must(
            Transform(
                workload=case.workload,
                strategy=replace(strategy, runtime={}, backend=""),  # the graph is the same in every runtime
                fidelity=Fidelity(epochs=fidelity.epochs),
                device=case.device,
                limits=limits,
            )
        )
        found["graph"] = graph
        engine = must(
            Build(
                graph=graph, target=case.place.serving(strategy), settings=case.place.settings(strategy), limits=limits
            )
        )
        found["engine"] = engine
        found["score"] = must(score_job(engine, case, case.workload.selection, "selection", case.reference, limits))
        measuring = time.monotonic()
        found["measurement"] = must(time_job(engine, case, fidelity.rounds, limits))
        found["round_seconds"] = (time.monotonic() - measuring) / fidelity.rounds
    except _Stopped as stopped:
        found["failed"] = stopped.failed
    return Outcome(strategy=strategy, fidelity=fidelity, seconds=time.monotonic() - start, **found)  # type: ignore[arg-type]


def time_job(engine: Engine, case: Case, rounds: int, limits: Limits) -> Job[Measurement]:
    """The job that says how fast `engine` is: measured, or predicted where the target is not here."""
    target, split, baseline = case.place.target, case.workload.selection, case.baseline or engine
    if case.place.predicted:
        return Predict(
            engine=engine, baseline=baseline, target=target, split=split, batches=case.batches,
            error=case.place.error, limits=limits,
        )  # fmt: skip
    return Measure(
        engine=engine, baseline=baseline, target=target, split=split, batches=case.batches, rounds=rounds,
        seed=case.seed, limits=limits,
    )  # fmt: skip


def score_job(engine: Engine, case: Case, split: Split, name: str, reference: str | None, limits: Limits) -> Scored:
    """The job that scores `engine` on a split, paired with `reference` outputs where given."""
    return Scored(
        engine=engine, target=case.place.at_hand, split=split, split_name=name, metric=case.workload.metric,
        signature=case.workload.signature, reference=reference, limits=limits,
    )  # fmt: skip
