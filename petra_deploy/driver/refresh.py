"""Another version of a bundle's runtime: keep the installed one, upgrade, or search again?

    advice = refresh(Path("bundle"), Asked(tried="onnxruntime==1.31.0"), logs, on_event)
    advice.advice, advice.why

The strategy is replayed with the other version in processes that import it first (driver/overlay.py), all else being
what is installed. The engine that comes of it is timed against the bundle's own in turns, each in a process of its
own, and scored on the same rows; and against the original, both with the other version, for what the manifest
promised. core/advice.py says what follows. The bundle is never changed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from petra_deploy.core import machine
from petra_deploy.core.advice import GATE, Advice, Judged, Standing, Trial, advise
from petra_deploy.core.comparison import Comparison
from petra_deploy.core.errors import BadInput, from_failure
from petra_deploy.core.event import Event, OnEvent
from petra_deploy.core.job import Build, Compare, Limits, Measure, Scored
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.outcome import Budget, Engine, Failed, Figure
from petra_deploy.core.request import Request
from petra_deploy.core.store import Store, default_root, digest_file
from petra_deploy.core.verdict import judge, share
from petra_deploy.core.workload import DataSource, MetricSpec, ModelSource, Split
from petra_deploy.driver import overlay
from petra_deploy.driver.build import at_hand, built, disagrees
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.place import Place
from petra_deploy.driver.replay import BROKEN, Replayed, Run, replay, run_of
from petra_deploy.driver.session import Session, open_session
from petra_deploy.driver.subject import Rows, Subject, engine_of, facts_of, locate, take

_ROUNDS = 7  # against the original


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked: which version, where, on which rows, and how long it may take."""

    tried: str  # "onnxruntime==1.31.0"
    target: str = ""  # empty: the bundle's own
    rows: Rows = field(default_factory=Rows)  # none: those of the run, where they are here
    most_rounds: int = 20
    seconds: float = 600.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The rows that both are scored on."""

    split: Split
    name: str
    metric: MetricSpec


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The bundle's engine in the session of the installed version, and what is told of it."""

    bundle: Path
    manifest: Manifest
    subject: Subject
    place: Place
    engine: Engine
    judging: Judging
    now: Session
    then: Session  # of the other version


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
    store = Store(default_root())
    run = run_of(bundle, manifest, store)
    folder = overlay.filled(wanted, store.root, lambda text: on_event(Event(kind="stage", text=text)))
    if isinstance(run, Run):
        request = replace(run.request, target=request.target, runtime="", remote=None, budget=request.budget,
                          seed=asked.seed)  # fmt: skip
    read = [bundle.resolve(), *_data(asked.rows.data)]
    with (
        open_session(request, logs / "installed", on_event, read=read) as now,
        open_session(request, logs / "tried", on_event, read=read, overlay=(folder,)) as then,
    ):
        place = at_hand(request.target, manifest.runtime.name, now)
        subject, judging = _rows(bundle, place, run, asked, now)
        engine = engine_of(subject, now)
        pair = Pair(bundle=bundle, manifest=manifest, subject=subject, place=place, engine=engine, judging=judging,
                    now=now, then=then)  # fmt: skip
        made = replay(bundle, manifest, run, now, then, wanted.words)
        then.say(made.note, "note")
        trial, tried, comparison = _tried(pair, made, folder, wanted, asked)
        advice, why = advise(trial, wanted.words)
        return Advice(
            bundle=str(path), tried=wanted.requirement, target=place.target.name, advice=advice, why=why,
            installed=engine.versions, versions=tried.versions if tried else {}, replayed=made.replayed,
            same_file=made.same_file, trial=trial, comparison=comparison, seconds=round(time.monotonic() - start, 1),
            notes=(made.note, *subject.notes, *(comparison.warnings if comparison else ())),
        )  # fmt: skip


def _data(source: DataSource) -> Sequence[Path]:
    return [Path(source.path).resolve().parent] if source.path else []


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


def _tried(
    pair: Pair, made: Replayed, folder: Path, wanted: overlay.Wanted, asked: Asked
) -> tuple[Trial, Engine | None, Comparison | None]:
    """Build, check, score and time what was replayed; what fails ends it, as the trial's reason."""
    if made.graph is None:
        return Trial(broken=made.broken), None, None
    target, then = pair.subject.target, pair.then
    done = then.run(Build(graph=made.graph, target=target, settings=pair.subject.settings, limits=then.limits()))
    if isinstance(done, Failed):
        return Trial(broken=_reason(done)), None, None
    engine = done.value
    if engine.versions == pair.engine.versions:
        raise BadInput(f"the engine was built with {engine.versions}, not with {wanted.words}",
                       "something on PYTHONPATH comes before it")  # fmt: skip
    if why := _mismatch(engine, made, pair):
        return Trial(broken=why), engine, None
    judged = _judged(engine, pair)
    if isinstance(judged, str):
        return Trial(broken=judged), engine, None
    comparison = _compared(engine, judged, folder, pair, asked, wanted)
    standing = _standing(engine, pair)
    return Trial(latency=comparison.verdicts[0], judged=judged, standing=standing), engine, comparison


def _reason(failed: Failed) -> str:
    """Why it does not work there. Raises what a failure is that no version of a runtime explains."""
    if failed.kind not in BROKEN:
        raise from_failure(failed)
    return str(failed)


def _mismatch(engine: Engine, made: Replayed, pair: Pair) -> str:
    """Why the engine does not compute its file, where that of the installed version does."""
    if made.graph is None:
        return ""
    split, place, then = pair.subject.split, pair.place, pair.then
    why = disagrees(engine, then.store.path(made.graph.key), split, place, then)
    if why and disagrees(pair.engine, pair.bundle, split, place, pair.now):
        then.say(f"engine and file differ, with the installed version too: {why}", "note")
        return ""
    return f"the engine does not compute what its file says: {why}" if why else ""


def _judged(engine: Engine, pair: Pair) -> Judged | str:
    """Both engines on the same rows, and the original where it is at hand; or why the new one cannot be scored."""
    split, manifest = pair.judging.split, pair.manifest
    pair.then.say(f"scoring on {split.rows} {pair.judging.name} rows")
    said = pair.now.must(_score(pair.engine, pair, None, pair.now))
    found = pair.then.run(_score(engine, pair, said.outputs, pair.then))
    if isinstance(found, Failed):
        return _reason(found)
    drop = found.value.drop or Figure(value=0.0, unit="points", n=split.rows)
    return Judged(
        metric=said.metric, rows=pair.judging.name, n=split.rows, installed=said.value, tried=found.value.value,
        drop=drop, below_original=_below(engine, drop, pair), max_drop=manifest.metric.max_drop,
    )  # fmt: skip


def _below(engine: Engine, drop: Figure, pair: Pair) -> Figure | None:
    """Points below the original with the same version; without its file the manifest's drop and this one, added."""
    facts = pair.manifest.metric
    if pair.judging.name == "made-up":
        return None
    if (original := _original(pair)) is not None:
        reference = pair.then.must(_score(original, pair, None, pair.then))
        return pair.then.must(_score(engine, pair, reference.outputs, pair.then)).drop
    if pair.judging.metric.name != facts.name:
        return None
    return Figure(value=facts.drop_points + drop.known(), unit="points", n=drop.n,
                  note="the manifest's drop and the one between versions, added")  # fmt: skip


def _score(engine: Engine, pair: Pair, reference: str | None, session: Session) -> Scored:
    judging = pair.judging
    return Scored(
        engine=engine, target=pair.subject.target, split=judging.split, split_name=judging.name, metric=judging.metric,
        signature=engine.signature, reference=reference, limits=Limits(seconds=max(session.left(), 120.0)),
    )  # fmt: skip


def _original(pair: Pair) -> Engine | None:
    """The baseline that the manifest speaks of, built with the other version; None where its file is not at hand."""
    side = pair.manifest.baseline
    path = (pair.bundle / side.file).resolve()
    if not path.is_file() or digest_file(path) != side.sha256:
        return None
    made = built(path, pair.subject.signature, pair.place.target, {}, pair.then)
    return None if isinstance(made, Failed) else made


def _compared(
    engine: Engine, judged: Judged, folder: Path, pair: Pair, asked: Asked, wanted: overlay.Wanted
) -> Comparison:
    """The two in turns, at the batch size that the goal is judged by."""
    subject, goal = pair.subject, pair.manifest.goal
    shape = subject.signature.inputs[0].shape
    batch = goal.batches[-1 if goal.objective == "throughput" else 0] if subject.signature.dynamic_batch else shape[0]
    gates = share(latency=GATE, batches=(batch if isinstance(batch, int) else 1,))
    pair.now.say(f"timing it with {wanted.words} against the installed version, in turns")
    done = pair.now.must(
        Compare(
            base=pair.engine, new=engine, target=subject.target, split=subject.split, gates=gates,
            overlay=str(folder), most_rounds=asked.most_rounds, seed=asked.seed, limits=pair.now.limits(),
        )
    )  # fmt: skip
    facts = facts_of(subject, pair.engine)
    tried = facts if engine.key == pair.engine.key else replace(
        facts, file="", bytes=engine.bytes,
        sha256=digest_file(pair.then.store.path(engine.graph) / "model.onnx"),
    )  # fmt: skip
    comparison = Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"), target=pair.place.target.name, base=facts,
        new=replace(tried, settings=engine.settings, versions=engine.versions), paired=True, gates=gates,
        rounds=done.rounds, drop=judged.drop, metric=judged.metric, machine=done.machine, sittings=done.sittings,
        warnings=done.warnings,
    )  # fmt: skip
    return replace(comparison, verdicts=judge(comparison))


def _standing(engine: Engine, pair: Pair) -> Standing | None:
    """Against the original, both with the other version."""
    if (original := _original(pair)) is None:
        pair.then.say("the original is not beside the bundle: what it promised is not checked", "note")
        return None
    manifest = pair.manifest
    pair.then.say("timing it against the original, both with that version")
    measured = pair.then.must(
        Measure(
            engine=engine, baseline=original, target=pair.subject.target, split=pair.subject.split,
            batches=(manifest.speedup.batch,), rounds=_ROUNDS, limits=pair.then.limits(),
        )
    )  # fmt: skip
    same = manifest.target.name == pair.place.target.name and manifest.machine.get("cpu") == machine.cpu_model()
    promised = manifest.speedup.value if same and manifest.speedup.origin == "measured" else None
    return Standing(speedup=measured.speedup, promised=promised)
