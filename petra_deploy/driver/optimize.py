"""The main job, stage by stage: load, baseline, plan, search, choose, confirm, package.

`api.py` turns arguments into a `Request`; here a request becomes a bundle. Each stage is a few
lines and knows only what the one before it answered.
"""

import contextlib
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import NotMet, PetraError, from_failure
from petra_deploy.core.event import Event, OnEvent
from petra_deploy.core.folder import RunFolder
from petra_deploy.core.job import Limits, Load
from petra_deploy.core.outcome import Front, Goal, Outcome
from petra_deploy.core.plan import Layout, Phase, Plan
from petra_deploy.core.request import Request
from petra_deploy.core.strategy import FULL, Strategy
from petra_deploy.core.workload import Loaded
from petra_deploy.driver.build import rebuilt
from petra_deploy.driver.bundle import write as bundle
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.certify import certified, refuse_elsewhere
from petra_deploy.driver.confirm import ROUNDS, confirm, over_half, round_seconds, with_half
from petra_deploy.driver.evaluate import Case, evaluate
from petra_deploy.driver.place import Place, find
from petra_deploy.driver.plan import make_plan
from petra_deploy.driver.search import choose
from petra_deploy.driver.search.cost_model import CostModel
from petra_deploy.driver.search.encoding import Encoding
from petra_deploy.driver.search.study import Search
from petra_deploy.driver.session import Session, open_session
from petra_deploy.driver.variants import notes, with_variants

_LOADED = "loaded.json"
_BASELINE = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run came to. `manifest` and `bundle` are None where no strategy met the goal."""

    front: Front
    trials: tuple[Outcome, ...]
    out: Path
    manifest: Manifest | None = None
    bundle: Path | None = None


def optimize(request: Request, folder: RunFolder, storage: str | None, on_event: OnEvent) -> Finished:
    """Search, confirm and package.

    Where nothing met the goal, `bundle` is None, `front.why` says why, and the nearest is kept in
    `nearest/`. Raises the errors of loading, and NotMet where going on is pointless.
    """
    with open_session(request, folder.logs, on_event) as session:
        place = find(
            request.target, runtime=request.runtime, require_measured=request.require_measured, look=session.look
        )
        if request.certify:
            refuse_elsewhere(place.target)
        if place.predicted:
            session.say(place.sentence, "note")
        loaded = load(request, folder, session)
        case, baseline = measure_baseline(request, loaded, place, folder, session)
        plan = place.searchable(make_plan(loaded.workload, place.target, request, session))
        tell(plan, loaded, session)
        ship = partial(_ship, request=request, loaded=loaded, baseline=baseline, layout=plan.layout, place=place)
        outcomes = _search(request, plan, case, baseline, folder, storage, session, ship)
        session.say(
            f"{'predicting' if place.predicted else 'measuring'} the finalists again, then opening the test split"
        )
        size = baseline.engine.bytes if baseline.engine else 1
        finalists = choose.finalists(outcomes, request.goal, size)
        finalists = with_half(finalists, outcomes, case, session)
        finalists = rebuilt(finalists, place, session)
        finalists = with_variants(finalists, request.goal, case, baseline, session)
        front = confirm(finalists, request.goal, case, baseline, loaded.sealed, session)
        front = choose.with_front(front, outcomes, request.goal, size)
        if not place.predicted:
            front = replace(front, outcomes=tuple(over_half(front.outcomes)))
        return package(front, outcomes, plan, baseline, request, folder, session, ship)


def load(request: Request, folder: RunFolder, session: Session) -> Loaded:
    """Load once a run: a resumed run finds the loaded workload in its folder."""
    kept = folder.path / _LOADED
    if kept.exists():
        with contextlib.suppress(PetraError):
            loaded = files.read_json(kept, Loaded)
            splits = (loaded.workload.selection, loaded.workload.calibration, loaded.sealed.split)
            if loaded.workload.model in session.store and all(split.key in session.store for split in splits):
                return loaded
    session.say("loading the model and the data")
    options = replace(request.load, seed=request.seed)
    loaded = session.must(Load(model=request.model, data=request.data, options=options, limits=session.limits()))
    if request.model.trust and session.jailed() is False:
        session.say("this system offers no jail: the trusted file's code ran in a child with limits only", "warning")
    files.write_json(kept, loaded)
    return loaded


def measure_baseline(
    request: Request, loaded: Loaded, place: Place, folder: RunFolder, session: Session
) -> tuple[Case, Outcome]:
    """The model as it came, through the same code as every candidate; if it fails, the run ends."""
    case = Case(
        workload=loaded.workload,
        place=place,
        batches=batches(request.goal, loaded),
        device=request.device,
        seed=request.seed,
    )
    kept = folder.baseline / _BASELINE
    outcome: Outcome | None = None
    if kept.exists():
        with contextlib.suppress(PetraError):
            outcome = files.read_json(kept, Outcome)
            if outcome.engine is None or outcome.engine.key not in session.store:
                outcome = None
    if outcome is None or outcome.score is None or outcome.score.outputs not in session.store:
        session.say("the baseline: the model as it came, in FP32")
        outcome = evaluate(Strategy(seed=request.seed), FULL, case, session.run, session.limits())
        if outcome.failed:
            raise from_failure(outcome.failed)
        bundle.keep_baseline(folder.baseline, outcome, session.store)
        files.write_json(kept, outcome)
    if outcome.engine is None or outcome.score is None:
        raise NotMet("the baseline has no figures", f"remove {kept} and run again with --resume")
    return replace(case, baseline=outcome.engine, reference=outcome.score.outputs), outcome


def batches(goal: Goal, loaded: Loaded) -> tuple[int, ...]:
    """The batch sizes to measure: those asked for, or the one that a static model has."""
    signature = loaded.workload.signature
    return goal.batches if signature.dynamic_batch else (signature.fixed_batch or 1,)


def tell(plan: Plan, loaded: Loaded, session: Session) -> None:
    """Say what the run can and cannot do with this model, and why."""
    for note in loaded.workload.notes:
        session.say(note, "note")
    for technique, why in plan.unavailable.items():
        session.say(f"{technique} is not available: {why}", "note")


def _ship(
    chosen: Outcome,
    considered: int,
    *,
    request: Request,
    loaded: Loaded,
    baseline: Outcome,
    layout: Layout,
    place: Place,
    notes: tuple[str, ...] = (),
) -> bundle.Shipment:
    return bundle.Shipment(
        chosen=chosen,
        baseline=baseline,
        workload=loaded.workload,
        target=place.target_of(chosen.strategy),
        layout=layout,
        goal=request.goal,
        seed=request.seed,
        runtime=request.runtime,
        considered=considered,
        test=chosen.test,
        notes=(*([place.sentence] if place.predicted else []), *chosen.notes, *notes),
    )


def _search(
    request: Request,
    plan: Plan,
    case: Case,
    baseline: Outcome,
    folder: RunFolder,
    storage: str | None,
    session: Session,
    ship: "partial[bundle.Shipment]",
) -> tuple[Outcome, ...]:
    measuring = baseline.measurement
    if measuring is None or baseline.engine is None or baseline.score is None:
        raise NotMet("the baseline has no figures")
    size = baseline.engine.bytes
    racing = replace(case, batches=choose.judged_by(request.goal, case.batches))  # the finalists: at all sizes
    done: list[Outcome] = []

    def record(number: int, outcome: Outcome) -> None:
        """Keep the trial, and the bundle of the best so far, on disk."""
        folder.record(number, outcome)
        before = choose.best(done, request.goal, size)
        done.append(outcome)
        now = choose.best(done, request.goal, size)
        if now is not None and now is not before:
            note = "written during the search: figures are of the selection split"
            bundle.write(folder.bundle, ship(now, len(done), notes=(note,)), session.store)
            text = f"{now.strategy.describe()}: {choose.gain(now, request.goal, size):.2f}x"
            session.on_event(Event(kind="best", text=text, best_speedup=choose.gain(now, request.goal, size)))
        elif outcome.failed:
            session.say(f"trial {number} failed at {outcome.failed}", "warning")

    def one(strategy: Strategy, seconds: float) -> Outcome:
        limits = Limits(seconds=max(seconds, 0.0) + max(0.12 * session.seconds, 20.0))
        return evaluate(strategy, FULL, racing, session.run, limits)

    earlier = folder.outcomes()
    done.extend(earlier.values())
    used = sum(o.seconds for o in earlier.values())
    reserve = _reserve(baseline, session.seconds, case.place)
    search = Search(
        encoding=Encoding(plan, CostModel(plan, fixed=_fixed(baseline)), request.seed),
        goal=request.goal,
        baseline=baseline,
        trials=request.budget.trials,
        deadline=time.monotonic() + session.left() - used - reserve,
        evaluate=one,
        storage=storage or f"sqlite:///{folder.study}",
        sampler=request.sampler,
        seed=request.seed,
        on_outcome=record,
        on_event=session.on_event,
    )
    session.say("searching")
    return search.run()


def _fixed(baseline: Outcome) -> float:
    """Seconds of a trial beside training, from the baseline's own; quantization adds to it."""
    return baseline.seconds + 6.0


def _reserve(baseline: Outcome, seconds: float, place: Place) -> float:
    """Seconds kept for the end: up to three finalists measured again (or predicted), the test split, packaging.

    With other runtimes there are as many again in each, and the model as it came.
    """
    again = FULL.rounds * baseline.round_seconds if place.predicted else ROUNDS * round_seconds(baseline)
    rest = baseline.seconds - FULL.rounds * baseline.round_seconds
    others = len(place.other_runtimes)
    return min((3 + 4 * others) * again + 0.5 * rest + 5.0 + others * 3 * _fixed(baseline), 0.25 * seconds)


def package(
    front: Front,
    outcomes: tuple[Outcome, ...],
    plan: Plan,
    baseline: Outcome,
    request: Request,
    folder: RunFolder,
    session: Session,
    ship: "partial[bundle.Shipment]",
) -> Finished:
    """Write the final bundle, or keep the nearest that is faster, if any, and say why there is none."""
    files.write_json(folder.front, front)
    keep_front(front, len(outcomes), folder, session, ship)
    chosen = front.chosen
    if chosen is None:
        shutil.rmtree(folder.bundle, ignore_errors=True)  # what the search kept did not hold on the test split
        size = baseline.engine.bytes if baseline.engine else 1
        gained = [o for o in front.outcomes if o.ok and o.test and choose.better(o, request.goal, size)]
        nearest = min(gained, key=choose.test_drop, default=None)
        if nearest is not None:
            bundle.write(folder.path / "nearest", ship(nearest, len(outcomes), notes=(front.why,)), session.store)
        kept = f"; the nearest is kept in {folder.path / 'nearest'}" if nearest is not None else ""
        offered = any(offer.phase in (Phase.SHRINK, Phase.QUANTIZE) for offer in plan.offers)
        why = choose.no_candidate(outcomes, offered=offered) or front.why
        untried = f"; shrinking was not tried: {plan.unshrunk}" if plan.unshrunk else ""
        front = replace(front, why=f"no strategy met the budget: {why}{untried}{kept}")
        return Finished(front=front, trials=outcomes, out=folder.path)
    drop = chosen.score
    note = choose.resolution(drop.drop, drop.drop_error, drop.n) if drop else ""
    others = notes(front, request.goal, baseline.engine.bytes if baseline.engine else 1)
    shipment = ship(chosen, len(outcomes), notes=(note, *others))
    if request.certify:
        shipment = certified(shipment, session)
    manifest = bundle.write(folder.bundle, shipment, session.store)
    return Finished(front=front, trials=outcomes, out=folder.path, manifest=manifest, bundle=folder.bundle)


def keep_front(
    front: Front, considered: int, folder: RunFolder, session: Session, ship: "partial[bundle.Shipment]"
) -> None:
    """A bundle of each finalist that was predicted: on the target, `bench` measures them (driver/finish.py)."""
    shutil.rmtree(folder.path / "front", ignore_errors=True)
    for outcome in front.outcomes:
        predicted = outcome.measurement is not None and outcome.measurement.speedup.origin == "predicted"
        if predicted and outcome.ok and outcome.test and outcome.engine:
            bundle.write(folder.finalist(outcome.engine.key), ship(outcome, considered), session.store)
