"""Finish a predicted run where its target is: measure its front there, choose again, keep how far predictions were off.

    finished = finish(folder, Asked(target="t4"), on_event)       # `petra-deploy bench OUT --target t4`

The run folder is all that is needed: each finalist's bundle lies in `front/`, the baseline in `baseline/`. Where
the rows of the run are still in this user's cache (the run was made here, or the target is reached by ssh) the
metric is scored anew on the test split by the engines built there. Elsewhere the metric stays that of the predicted
run, which is of the very same file, and each engine must agree with that file on made-up rows.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import files, ledger
from petra_deploy.core.errors import BadInput, NotMet
from petra_deploy.core.event import OnEvent
from petra_deploy.core.folder import RunFolder
from petra_deploy.core.job import Measure
from petra_deploy.core.outcome import Budget, Engine, Failed, Front, Measurement, Outcome
from petra_deploy.core.request import Request
from petra_deploy.core.strategy import FULL, Strategy
from petra_deploy.core.workload import Loaded, Workload
from petra_deploy.driver.build import Asked, at_hand, built, disagrees, made_up, must, several
from petra_deploy.driver.bundle import update
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.confirm import confirm
from petra_deploy.driver.evaluate import Case
from petra_deploy.driver.optimize import Finished
from petra_deploy.driver.place import Place
from petra_deploy.driver.session import Session, open_session


def finish(folder: RunFolder, asked: Asked, on_event: OnEvent) -> Finished:
    """Measure, choose, write the bundle and the ledger.

    Raises BadInput where the folder holds no predicted front, TargetAbsent where the target is not here,
    NotMet where no engine of the front was better than the baseline there.
    """
    front, request = _predicted_front(folder)
    request = replace(
        request, target=asked.target or request.target, remote=asked.remote or request.remote,
        budget=Budget(seconds=asked.seconds),
    )  # fmt: skip
    with open_session(request, folder.logs, on_event) as session:
        runtime = asked.runtime or request.runtime
        place = at_hand(request.target, runtime, session)
        manifests = {o.engine.key: verify(entry) for o, entry in _entries(folder, front) if o.engine}
        case, loaded, own_rows = _case(folder, request, place, next(iter(manifests.values())), session)
        session.say(f"building and measuring {len(manifests)} engines and the baseline on {place.target.name}")
        engine = must(built(folder.baseline, case.workload.signature, place.target, {}, session))
        case = replace(case, baseline=engine)
        baseline = _timed(engine, case, session)
        finalists = [_brought(o, entry, case, own_rows, session) for o, entry in _entries(folder, front)]
        confirmed = confirm(finalists, request.goal, case, baseline, loaded.sealed if own_rows else None, session)
        notes = _record(confirmed, front, place, case.workload.name, session)
        files.write_json(folder.path / "measured.json", confirmed)
        chosen = confirmed.chosen
        if chosen is None or chosen.engine is None:
            raise NotMet(f"nothing of the front holds on {place.target.name}: {confirmed.why}",
                         "search there: petra-deploy optimize on that machine")  # fmt: skip
        source = next(entry for o, entry in _entries(folder, front) if o.strategy == chosen.strategy)
        manifest = update.measured(folder.bundle, source, chosen, engine, place.target, notes, session.store)
        return Finished(
            front=confirmed, trials=confirmed.outcomes, out=folder.path, manifest=manifest, bundle=folder.bundle
        )


def predicted(path: Path) -> bool:
    """Whether a folder holds a run that `finish` is for, or one of which it would say why not."""
    unfinished = (path / "run.json").is_file() and not (path / "bundle" / "model.onnx").is_file()
    return unfinished or any(path.glob("front/*/manifest.json"))


def _predicted_front(folder: RunFolder) -> tuple[Front, Request]:
    if not folder.front.exists():
        raise BadInput(f"{folder.path} holds no finished run", "give the --out folder of a run that has ended")
    front, request = files.read_json(folder.front, Front), files.read_json(folder.request, Request)
    if not _entries(folder, front):
        raise BadInput(
            f"{folder.path} holds no predicted front: a run whose target was there is measured already",
            "`petra-deploy optimize --target NAME` without that target makes one",
        )
    return front, request


def _entries(folder: RunFolder, front: Front) -> list[tuple[Outcome, Path]]:
    """The predicted outcomes and their bundles."""
    found = [(o, folder.finalist(o.engine.key)) for o in front.outcomes if o.engine and o.measurement and o.test]
    return [(outcome, path) for outcome, path in found if (path / "manifest.json").is_file()]


def _case(
    folder: RunFolder, request: Request, place: Place, manifest: Manifest, session: Session
) -> tuple[Case, Loaded, bool]:
    """What the engines are fed; whether it is the run's own rows."""
    loaded = files.read_json(folder.path / "loaded.json", Loaded)
    workload: Workload = loaded.workload
    here = all(split.key in session.store for split in (workload.selection, loaded.sealed.split))
    if not here:
        session.say(
            "the rows of the run are not on this machine: engines are fed made-up ones, and the metric stays the one "
            "that was measured of the same files", "note",
        )  # fmt: skip
        made = made_up(manifest.example_inputs, workload.signature, session.store)
        workload = replace(workload, selection=made)
    fixed = workload.signature.inputs[0].shape[0] if workload.signature.inputs[0].shape else 1
    batches = request.goal.batches if workload.signature.dynamic_batch else (fixed if isinstance(fixed, int) else 1,)
    return Case(workload=workload, place=place, batches=batches, seed=request.seed), loaded, here


def _timed(engine: Engine, case: Case, session: Session) -> Outcome:
    """The baseline against itself, once: how long a round takes."""
    start = time.monotonic()
    measured = session.must(
        Measure(
            engine=engine,
            baseline=engine,
            target=case.place.target,
            split=case.workload.selection,
            batches=case.batches,
            rounds=1,
            limits=session.limits(),
        )
    )
    return Outcome(
        strategy=Strategy(), fidelity=FULL, engine=engine, measurement=measured,
        round_seconds=time.monotonic() - start,
    )  # fmt: skip


def _brought(outcome: Outcome, entry: Path, case: Case, here: bool, session: Session) -> Outcome:
    """A finalist with an engine of this target; failed where it does not build, or not compute what its file says."""
    settings = several(case.place, dict(outcome.strategy.runtime))  # what is measured is what may ship
    engine = built(entry, case.workload.signature, case.place.target, settings, session)
    if isinstance(engine, Failed):
        session.say(f"{outcome.strategy.describe()} failed at {engine}", "warning")
        return replace(outcome, engine=None, failed=engine)
    if not here and (why := disagrees(engine, entry, case.workload.selection, case.place, session)):
        session.say(f"{outcome.strategy.describe()} computes something else here: {why}", "warning")
        failed = Failed(job="score", kind="mismatch", reason=why)
        return replace(outcome, engine=engine, failed=failed)
    return replace(outcome, engine=engine)


def _record(confirmed: Front, front: Front, place: Place, model: str, session: Session) -> tuple[str, ...]:
    """Write the ledger; say how far the predictions were off."""
    before = {files.canonical(o.strategy): o for o in front.outcomes}
    entries: list[ledger.Entry] = []
    for outcome in confirmed.outcomes:
        predicted = before[files.canonical(outcome.strategy)].measurement
        if outcome.ok and outcome.measurement and outcome.engine and predicted and predicted.work:
            entries += ledger.compare(
                predicted, outcome.measurement, model=model, strategy=outcome.strategy.describe(),
                artifact=outcome.engine.graph, device=_device(place, outcome.measurement),
                versions=outcome.engine.versions,
            )  # fmt: skip
    if not entries:
        return ()
    path = ledger.append(place.target.name, entries)
    session.say(f"{len(entries)} predictions and measurements are in {path}", "note")
    said = _errors(entries)
    session.say(said, "note")
    return (said,)


def _errors(entries: Sequence[ledger.Entry]) -> str:
    latencies = sorted(max(e.latency_ratio, 1 / e.latency_ratio) for e in entries)
    speedups = sorted(max(e.speedup_ratio, 1 / e.speedup_ratio) for e in entries)
    middle = len(entries) // 2
    return (
        f"of {len(entries)} predictions the latency was off by a factor of {latencies[middle]:.2f} in the middle, "
        f"{latencies[-1]:.2f} at most; the speedup by {speedups[middle]:.2f} and {speedups[-1]:.2f}"
    )


def _device(place: Place, measured: Measurement) -> str | None:
    """The driver's name of the device; None for a processor, whose name the measurement has."""
    if place.target.device != "cuda":
        return None
    names = measured.machine.get("gpus")
    found = str(names[0]).rpartition(" (")[0] if isinstance(names, list | tuple) and names else ""
    return found or place.target.device_name or place.target.name
