"""An engine of another version of a runtime: built, checked, scored and timed against the installed version's.

    trial, engine, comparison = tried(pair, replayed)

Both are scored on the same rows and timed in turns, each in a process of its own. Where the original is at hand both
its metric and its time, with the other version, say whether what the manifest promised still holds.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from petra_deploy.core import machine
from petra_deploy.core.advice import GATE, Judged, Standing, Trial
from petra_deploy.core.comparison import Comparison
from petra_deploy.core.drop import DECIMALS
from petra_deploy.core.errors import BadInput, from_failure
from petra_deploy.core.job import Build, Compare, Limits, Measure, Scored
from petra_deploy.core.outcome import Engine, Failed, Figure
from petra_deploy.core.store import digest_file
from petra_deploy.core.target import Target
from petra_deploy.core.verdict import judge, share
from petra_deploy.core.workload import MetricSpec, Split
from petra_deploy.driver.build import built, disagrees
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.overlay import Wanted
from petra_deploy.driver.place import Place
from petra_deploy.driver.replay import BROKEN, Replayed
from petra_deploy.driver.session import Session
from petra_deploy.driver.subject import Subject, facts_of

_ROUNDS = 7  # against the original


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The rows that both are scored on."""

    split: Split
    name: str
    metric: MetricSpec


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The bundle's engine with the installed version, and what it takes to set one of another version beside it."""

    wanted: Wanted
    overlay: Path
    bundle: Path
    manifest: Manifest
    subject: Subject
    place: Place
    engine: Engine
    original: Target  # with the runtime that the original was measured in, which may be another
    judging: Judging
    now: Session
    then: Session  # of the other version
    most_rounds: int
    seed: int


def tried(pair: Pair, made: Replayed) -> tuple[Trial, Engine | None, Comparison | None]:
    """Build, check, score and time what was replayed; what fails ends it, as the trial's reason."""
    if made.graph is None:
        return Trial(broken=made.broken), None, None
    target, then = pair.subject.target, pair.then
    done = then.run(Build(graph=made.graph, target=target, settings=pair.subject.settings, limits=then.limits()))
    if isinstance(done, Failed):
        return Trial(broken=_reason(done)), None, None
    engine = done.value
    if engine.versions == pair.engine.versions:
        raise BadInput(f"the engine was built with {engine.versions}, not with {pair.wanted.words}",
                       "something on PYTHONPATH comes before it")  # fmt: skip
    if why := _mismatch(engine, made, pair):
        return Trial(broken=why), engine, None
    original = _original(pair)
    judged = _judged(engine, original, pair)
    if isinstance(judged, str):
        return Trial(broken=judged), engine, None
    comparison = _compared(engine, judged, pair)
    standing = _standing(engine, original, pair) if original else None
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


def _judged(engine: Engine, original: Engine | None, pair: Pair) -> Judged | str:
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
        drop=drop, below_original=_below(engine, original, drop, pair), max_drop=manifest.metric.max_drop,
    )  # fmt: skip


def _below(engine: Engine, original: Engine | None, drop: Figure, pair: Pair) -> Figure | None:
    """Points below the original with the same version; without its file the manifest's drop and this one, added."""
    facts = pair.manifest.metric
    if pair.judging.name == "made-up":
        return None
    if original is not None:
        reference = pair.then.must(_score(original, pair, None, pair.then))
        return pair.then.must(_score(engine, pair, reference.outputs, pair.then)).drop
    if pair.judging.metric.name != facts.name:
        return None
    return Figure(value=round(facts.drop_points + drop.known(), DECIMALS), unit="points", n=drop.n,
                  note="the manifest's drop and the one between versions, added")  # fmt: skip


def _score(engine: Engine, pair: Pair, reference: str | None, session: Session) -> Scored:
    judging = pair.judging
    return Scored(
        engine=engine, target=pair.subject.target, split=judging.split, split_name=judging.name, metric=judging.metric,
        signature=engine.signature, reference=reference, limits=Limits(seconds=max(session.left(), 120.0)),
    )  # fmt: skip


def _original(pair: Pair) -> Engine | None:
    """What the manifest speaks of as the baseline, in the session of the other version; None, said, where it is not
    at hand.
    """
    side = pair.manifest.baseline
    path = (pair.bundle / side.file).resolve()
    if not path.is_file() or digest_file(path) != side.sha256:
        pair.then.say("the original is not beside the bundle: what was promised over it is not checked", "note")
        return None
    made = built(path, pair.subject.signature, pair.original, {}, pair.then)
    if isinstance(made, Failed):
        pair.then.say(
            f"the original cannot be served here, so what was promised over it is not checked: {made}", "note"
        )
        return None
    return made


def _compared(engine: Engine, judged: Judged, pair: Pair) -> Comparison:
    """The two in turns, at the batch size that the goal is judged by."""
    subject, goal = pair.subject, pair.manifest.goal
    shape = subject.signature.inputs[0].shape
    batch = goal.batches[-1 if goal.objective == "throughput" else 0] if subject.signature.dynamic_batch else shape[0]
    gates = share(latency=GATE, batches=(batch if isinstance(batch, int) else 1,))
    pair.now.say(f"timing it with {pair.wanted.words} against the installed version, in turns")
    done = pair.now.must(
        Compare(
            base=pair.engine, new=engine, target=subject.target, split=subject.split, gates=gates,
            overlay=str(pair.overlay), most_rounds=pair.most_rounds, seed=pair.seed, limits=pair.now.limits(),
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


def _standing(engine: Engine, original: Engine, pair: Pair) -> Standing:
    """Against the original, both in the session of the other version."""
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
