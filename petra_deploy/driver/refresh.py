"""Another version of a bundle's runtime: keep the installed one, upgrade, or search again?

    advice = refresh(Path("bundle"), Asked(tried="onnxruntime==1.31.0"), logs, on_event)
    advice.advice, advice.why

The strategy is replayed with the other version in processes that import it first (driver/overlay.py), all else being
what is installed. The engine that comes of it is timed against the bundle's own in turns, each in a process of its
own, and scored on the same rows; and against the original, both with the other version, for what the manifest
promised. core/advice.py says what follows. The bundle is never changed.
"""

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from petra_deploy.core.advice import Advice, advise
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.outcome import Budget
from petra_deploy.core.request import Request
from petra_deploy.core.store import Store, default_root
from petra_deploy.core.workload import DataSource, ModelSource
from petra_deploy.driver import overlay
from petra_deploy.driver.build import at_hand
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.place import Place
from petra_deploy.driver.replay import Run, replay, run_of
from petra_deploy.driver.session import Session, open_session, readable
from petra_deploy.driver.subject import Rows, Subject, engine_of, locate, take
from petra_deploy.driver.tried import Judging, Pair, tried


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked: which version, where, on which rows, and how long it may take."""

    tried: str  # "onnxruntime==1.31.0"
    target: str = ""  # empty: the bundle's own
    rows: Rows = field(default_factory=Rows)  # none: those of the run, where they are here
    most_rounds: int = 20
    seconds: float = 600.0
    seed: int = 0


def refresh(path: Path, asked: Asked, logs: Path, on_event: OnEvent) -> Advice:
    """Raises BadInput for a version that cannot be tried and for a bundle that another runtime serves, NotMet where
    the bundle has changed, TargetAbsent where its target is not here.
    """
    start = time.monotonic()
    bundle = locate(path).parent
    manifest, wanted = verify(bundle), overlay.parse(asked.tried)
    if manifest.runtime.name != wanted.runtime:
        raise BadInput(f"{path} is served by {manifest.runtime.name}, and {wanted.package} brings {wanted.runtime}",
                       f"name a version of {manifest.runtime.name}")  # fmt: skip
    request = Request(
        model=ModelSource(path=str(bundle.resolve() / "model.onnx")), data=asked.rows.data,
        target=asked.target or manifest.target.name, budget=Budget(seconds=asked.seconds), seed=asked.seed,
    )  # fmt: skip
    read, run = readable(request), run_of(bundle, manifest, Store(default_root()))
    if isinstance(run, Run):
        request = replace(run.request, target=request.target, runtime="", remote=None, budget=request.budget,
                          seed=asked.seed)  # fmt: skip
    with contextlib.ExitStack() as sessions:
        now = sessions.enter_context(open_session(request, logs / "installed", on_event, read=read))
        place = at_hand(request.target, manifest.runtime.name, now)
        if place.target.device != "cpu":
            raise BadInput(f"versions of a runtime are compared on processors, and {place.target.name} is none",
                           "try the version in an environment of its own")  # fmt: skip
        original = at_hand(request.target, recipes.read(bundle / "strategy.json").runtime, now).target
        folder = overlay.filled(wanted, now.store.root, now.say)
        then = sessions.enter_context(open_session(request, logs / "tried", on_event, read=read, overlay=(folder,)))
        subject, judging = _rows(bundle, place, run, asked, now)
        engine = engine_of(subject, now)
        pair = Pair(wanted=wanted, overlay=folder, bundle=bundle, manifest=manifest, subject=subject, place=place,
                    engine=engine, original=original, judging=judging, now=now, then=then,
                    most_rounds=asked.most_rounds, seed=asked.seed)  # fmt: skip
        made = replay(bundle, manifest, run, now, then, wanted.words)
        then.say(made.note, "note")
        trial, other, comparison = tried(pair, made)
        advice, why = advise(trial, wanted.words)
        return Advice(
            bundle=str(path), tried=wanted.requirement, target=place.target.name, advice=advice, why=why,
            installed=engine.versions, versions=other.versions if other else {}, replayed=made.replayed,
            same_file=made.same_file, trial=trial, comparison=comparison, seconds=round(time.monotonic() - start, 1),
            notes=(made.note, *subject.notes, *(comparison.warnings if comparison else ())),
        )  # fmt: skip


def _rows(bundle: Path, place: Place, run: Run | str, asked: Asked, session: Session) -> tuple[Subject, Judging]:
    """The bundle as it is fed while it is timed, and what it is judged on: rows given, of the run, or made up."""
    subject = take(bundle, place, session, asked.rows)
    if subject.metric is not None:
        return subject, Judging(split=subject.split, name="given", metric=subject.metric)
    if isinstance(run, Run) and asked.rows.data == DataSource():
        workload, test = run.loaded.workload, run.loaded.sealed.split
        return replace(subject, split=workload.selection), Judging(split=test, name="test", metric=workload.metric)
    session.say("no rows are at hand: the metric is the agreement with the installed version on made-up ones", "note")
    return subject, Judging(split=subject.split, name="made-up", metric=SPECS["agreement"])
