"""Finish a predicted run where its target is: measure its front there, choose again, keep how far predictions were off.

    finished = finish(folder, Finish(target="t4"), on_event)       # `petra-deploy bench OUT --target t4`
    manifest, bundle = build(Path("bundle"), ...)                  # `petra-deploy build BUNDLE`

The run folder is all that is needed: each finalist's bundle lies in `front/`, the baseline in `baseline/`. Where
the rows of the run are still in this user's cache (the run was made here, or the target is reached by ssh) the
metric is scored anew on the test split by the engines built there. Elsewhere the metric stays that of the predicted
run, which is of the very same file, and each engine must agree with that file on made-up rows.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petra_deploy.core import files, ledger, machine
from petra_deploy.core.errors import BadInput, NotMet, TargetAbsent, from_failure
from petra_deploy.core.event import OnEvent
from petra_deploy.core.folder import RunFolder
from petra_deploy.core.job import Build, Limits, Measure, Scored
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.outcome import Budget, Engine, Failed, Front, Graph, Outcome
from petra_deploy.core.request import Remote, Request
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import FULL, Strategy
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Loaded, ModelSource, Signature, Split, Workload
from petra_deploy.driver.bundle import update
from petra_deploy.driver.bundle.manifest import ExampleInput, Manifest
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.confirm import confirm
from petra_deploy.driver.evaluate import Case
from petra_deploy.driver.optimize import Finished
from petra_deploy.driver.place import RUNTIME, Place, find
from petra_deploy.driver.session import Session, open_session

_ROWS = 64  # made up, where those of the run are not here
_AGREEMENT = 5.0  # points that an engine may differ from its file on made-up rows: near ties, and FP16
_BUILDS = 3  # of an engine that ships, where its runtime's builds differ
_LOTTERY = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, kw_only=True)
class Finish:
    """What is asked: on which target, by which of its runtimes, where it is and how long it may take."""

    target: str = ""  # empty: the run's own
    runtime: str = ""
    remote: Remote | None = None
    seconds: float = 600.0


def finish(folder: RunFolder, asked: Finish, on_event: OnEvent) -> Finished:
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
        place = _here(request.target, runtime, session)
        manifests = {o.engine.key: verify(entry) for o, entry in _entries(folder, front) if o.engine}
        case, loaded, here = _case(folder, request, place, next(iter(manifests.values())), session)
        session.say(f"building and measuring {len(manifests)} engines and the baseline on {place.target.name}")
        engine = _must(_built(folder.baseline, case.workload.signature, place.target, {}, session))
        case = replace(case, baseline=engine)
        baseline = _timed(engine, case, session)
        finalists = [_brought(o, entry, case, here, session) for o, entry in _entries(folder, front)]
        confirmed = confirm(finalists, request.goal, case, baseline, loaded.sealed if here else None, session)
        notes = _record(confirmed, front, place, case.workload.name, session)
        files.write_json(folder.path / "measured.json", confirmed)
        chosen = confirmed.chosen
        if chosen is None or chosen.engine is None:
            raise NotMet(f"nothing of the front holds on {place.target.name}: {confirmed.why}",
                         "search there: petra-deploy optimize on that machine")  # fmt: skip
        source = next(entry for o, entry in _entries(folder, front) if o.strategy == chosen.strategy)
        shipped = _best_build(chosen, source, place, session)
        manifest = update.measured(folder.bundle, source, shipped, engine, notes, session.store)
        return Finished(
            front=confirmed, trials=confirmed.outcomes, out=folder.path, manifest=manifest, bundle=folder.bundle
        )


def build(bundle: Path, asked: Finish, logs: Path, on_event: OnEvent) -> Manifest:
    """Put the engine for this machine into a bundle; its figures stay what they were.

    Raises TargetAbsent where the bundle's target is not here, NotMet where the engine does not compute what
    its file says.
    """
    manifest = verify(bundle)
    request = Request(
        model=ModelSource(path=str(bundle.resolve() / "model.onnx")), target=asked.target or manifest.target.name,
        remote=asked.remote, budget=Budget(seconds=asked.seconds),
    )  # fmt: skip
    with open_session(request, logs, on_event) as session:
        place = _here(request.target, asked.runtime, session)
        signature = Signature(inputs=manifest.inputs, outputs=manifest.outputs)
        settings = dict(manifest.runtime.settings) if manifest.runtime.name == place.target.runtime else {}
        session.say(f"building for {place.target.name} with {place.target.runtime}")
        engine = _must(_built(bundle, signature, place.target, _lottery(place, settings), session))
        split = _made_up(manifest.example_inputs, signature, session.store)
        if why := _disagrees(engine, bundle, split, place, session):
            raise NotMet(f"the engine does not compute what {bundle / 'model.onnx'} says: {why}",
                         "another version of the runtime may; the bundle is as it was")  # fmt: skip
        return update.built(bundle, engine, session.store)


def _here(target: str, runtime: str, session: Session) -> Place:
    """Raises TargetAbsent where the target is not on this machine, nor on the one that was named."""
    place = find(target, runtime=runtime, look=session.look)
    if place.predicted:
        raise TargetAbsent(f"{place.target.name} is not here: it {place.why}",
                           "run this on a machine that has it, or name one that ssh reaches")  # fmt: skip
    return place


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
        made = _made_up(manifest.example_inputs, workload.signature, session.store)
        workload = replace(workload, selection=made)
    fixed = workload.signature.inputs[0].shape[0] if workload.signature.inputs[0].shape else 1
    batches = request.goal.batches if workload.signature.dynamic_batch else (fixed if isinstance(fixed, int) else 1,)
    return Case(workload=workload, place=place, batches=batches, seed=request.seed), loaded, here


def _made_up(inputs: dict[str, ExampleInput], signature: Signature, store: Store) -> Split:
    """Rows within the ranges that the calibration data had."""
    random = np.random.default_rng(0)
    rows = {}
    for spec in signature.inputs:
        seen, dtype = inputs[spec.name], np.dtype(spec.dtype)
        shape = (_ROWS, *seen.shape)
        if dtype.kind in "biu":
            rows[spec.name] = random.integers(int(seen.low), int(seen.high) + 1, shape).astype(dtype)
        else:
            rows[spec.name] = random.uniform(seen.low, seen.high, shape).astype(dtype)
    return Split(key=store.add(Samples(rows).save), rows=_ROWS, labelled=False, origin="random")


def _built(
    folder: Path, signature: Signature, target: Target, settings: dict[str, object], session: Session
) -> Engine | Failed:
    model = folder / "model.onnx"

    def copy(entry: Path) -> None:
        shutil.copyfile(model, entry / "model.onnx")

    graph = Graph(key=session.store.add(copy), signature=signature, bytes=model.stat().st_size)
    done = session.run(Build(graph=graph, target=target, settings=settings, limits=session.limits()))
    return done if isinstance(done, Failed) else done.value


def _must(engine: Engine | Failed) -> Engine:
    if isinstance(engine, Failed):
        raise from_failure(engine)
    return engine


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
    engine = _built(entry, case.workload.signature, case.place.target, dict(outcome.strategy.runtime), session)
    if isinstance(engine, Failed):
        session.say(f"{outcome.strategy.describe()} failed at {engine}", "warning")
        return replace(outcome, engine=None, failed=engine)
    if not here and (why := _disagrees(engine, entry, case.workload.selection, case.place, session)):
        session.say(f"{outcome.strategy.describe()} computes something else here: {why}", "warning")
        failed = Failed(job="score", kind="mismatch", reason=why)
        return replace(outcome, engine=engine, failed=failed)
    return replace(outcome, engine=engine)


def _disagrees(engine: Engine, folder: Path, split: Split, place: Place, session: Session) -> str:
    """Why the engine is not its file, run as it is written by ONNX Runtime on the processor; empty where it is."""
    stand_in = replace(place.target, runtime=RUNTIME, device="cpu")
    plain = _built(folder, engine.signature, stand_in, {"optimization": "none"}, session)
    if isinstance(plain, Failed):
        return str(plain)
    fields = {
        "split": split, "split_name": "made-up", "metric": SPECS["agreement"], "signature": engine.signature,
        "limits": Limits(seconds=max(session.left(), 120.0)),
    }  # fmt: skip
    said = session.run(Scored(engine=plain, target=stand_in, **fields))  # type: ignore[arg-type]
    if isinstance(said, Failed):
        return str(said)
    reference = said.value.outputs
    found = session.run(Scored(engine=engine, target=place.target, reference=reference, **fields))  # type: ignore[arg-type]
    if isinstance(found, Failed):
        return str(found)
    drop = found.value.drop.known() if found.value.drop else 0.0
    return f"they agree on {100 - drop:.1f}% only" if drop > _AGREEMENT else ""


def _lottery(place: Place, settings: dict[str, object]) -> dict[str, object]:
    return {**settings, "builds": _BUILDS} if place.target.runtime in _LOTTERY else settings


def _best_build(chosen: Outcome, source: Path, place: Place, session: Session) -> Outcome:
    """What ships, built several times where builds differ; the fastest that computes the same is kept."""
    if place.target.runtime not in _LOTTERY or chosen.engine is None:
        return chosen
    session.say(f"building what ships {_BUILDS} times, to keep the fastest")
    settings = _lottery(place, dict(chosen.strategy.runtime))
    engine = _built(source, chosen.engine.signature, place.target, settings, session)
    if isinstance(engine, Failed):
        session.say(f"the first build ships: {engine}", "warning")
        return chosen
    return replace(chosen, engine=engine)


def _record(confirmed: Front, front: Front, place: Place, model: str, session: Session) -> tuple[str, ...]:
    """Write the ledger; say how far the predictions were off."""
    before = {files.canonical(o.strategy): o for o in front.outcomes}
    entries: list[ledger.Entry] = []
    for outcome in confirmed.outcomes:
        predicted = before[files.canonical(outcome.strategy)].measurement
        if outcome.ok and outcome.measurement and outcome.engine and predicted and predicted.work:
            entries += ledger.compare(
                predicted, outcome.measurement, model=model, strategy=outcome.strategy.describe(),
                artifact=outcome.engine.graph, device=_device(place), versions=outcome.engine.versions,
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


def _device(place: Place) -> str | None:
    """The driver's name of the device; None for a processor, whose name the measurement has."""
    if place.target.device != "cuda":
        return None
    fitting = [device.name for device in machine.cuda_devices() if machine.matches(place.target, device)]
    return fitting[0] if fitting else place.target.device_name or place.target.name
