"""Two engines against each other, by gates: is the new one slower, larger or worse than the base allows?

    comparison = compare(Path("base/bundle"), Path("new/bundle"), Asked(gates=...), logs, on_event)
    overall(comparison.verdicts)            # "fail", "pass" or "inconclusive"

Whenever both engines can run here they are measured anew, in turns: the only comparison that holds on a shared
machine. A profile stands for the engine it was made of, where that is still there. Else two records are compared,
each through its yardstick; of two machines only where that is asked for.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.comparison import Comparison, Gate, Record
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent
from petra_deploy.core.job import Compare, Limits, Scored
from petra_deploy.core.outcome import Budget, Engine, Figure
from petra_deploy.core.profile import Profile
from petra_deploy.core.request import Remote, Request
from petra_deploy.core.verdict import judge
from petra_deploy.core.workload import ModelSource
from petra_deploy.driver import profiles
from petra_deploy.driver.build import at_hand
from petra_deploy.driver.place import Place
from petra_deploy.driver.session import Session, open_session
from petra_deploy.driver.subject import Rows, Subject, engine_of, facts_of, feeding, fixed_batch, take

_MACHINE = ("cpu", "instructions", "cores", "affinity", "architecture", "virtual", "gpus")
_RECORDED = (
    "these were recorded at different times: each is taken relative to the yardstick that was timed with it, which "
    "cancels most of the machine's own drift, not all; measure both engines here for a comparison that holds"
)
_CROSS = (
    "these are of two machines: the ratio says which engine on its machine was faster then, nothing of the engines "
    "alone, and no other machine of the same kind need agree"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a comparison."""

    gates: tuple[Gate, ...]
    target: str = "cpu"
    runtime: str = ""
    remote: Remote | None = None
    rows: Rows = field(default_factory=Rows)
    threads: int | None = None  # None: each engine's own
    most_rounds: int = 20
    seconds: float = 600.0
    seed: int = 0
    recorded: bool = False  # compare the records of two profiles, measure nothing
    cross_machine: bool = False
    explain: bool = False


@dataclass(frozen=True)
class Compared:
    """`explained`: a sentence for each layer that got slower, where that was asked for."""

    comparison: Comparison
    explained: tuple[str, ...] = ()


def again(path: Path) -> Comparison:
    """The comparison in a file, judged anew from its rounds. Raises BadInput where it is none."""
    found = files.read_json(path, Comparison)
    return replace(found, verdicts=judge(found))


def compare(base: Path, new: Path, asked: Asked, logs: Path, on_event: OnEvent) -> Compared:
    """Raises BadInput where the two cannot be compared, TargetAbsent where the target is not here."""
    recorded = {path: profiles.read(path) for path in (base, new) if profiles.is_profile(path)}
    alive = {path: profiles.subject_of(path, profile) for path, profile in recorded.items()}
    gone = [path for path, engine in alive.items() if engine is None]
    if asked.recorded or (gone and len(recorded) == 2):
        if len(recorded) < 2:
            raise BadInput("--recorded compares two profiles", "petra-deploy bench ENGINE --save FILE.json records one")
        return Compared(_judged(_of_records(recorded[base], recorded[new], asked)))
    if gone:
        path = gone[0]
        raise BadInput(
            f"{path} is of {recorded[path].engine.file or 'an engine'}, which is not there, or has changed since",
            "put the engine back where the profile was made; or record the other one with `petra-deploy bench "
            "ENGINE --save FILE.json` and compare the two profiles",
        )
    subjects = [Named(alive.get(path) or path, recorded.get(path)) for path in (base, new)]
    return _measured(subjects[0], subjects[1], asked, logs, on_event)


@dataclass(frozen=True)
class Named:
    """An engine that was named, itself or by a profile of it, whose settings are then its own."""

    path: Path
    profile: Profile | None

    def take(self, place: Place, session: Session, asked: Asked) -> Subject:
        subject = take(self.path, place, session, asked.rows, runtime=asked.runtime)
        if self.profile is None or asked.runtime or self.profile.engine.runtime != subject.target.runtime:
            return subject
        return replace(subject, settings=self.profile.engine.settings)


def _judged(comparison: Comparison) -> Comparison:
    return replace(comparison, verdicts=judge(comparison))


def _measured(base: Named, new: Named, asked: Asked, logs: Path, on_event: OnEvent) -> Compared:
    request = Request(
        model=ModelSource(path=str(new.path.absolute())), data=asked.rows.data, target=asked.target,
        remote=asked.remote, budget=Budget(seconds=asked.seconds),
    )  # fmt: skip
    folder = base.path if base.path.is_dir() else base.path.parent
    with open_session(request, logs, on_event, read=[folder.absolute()]) as session:
        place = at_hand(asked.target, asked.runtime, session)
        one = new.take(place, session, asked)
        other = feeding(base.take(place, session, asked), one)
        for note in dict.fromkeys((*one.notes, *other.notes)):
            session.say(note, "note")
        gates = _at(asked.gates, fixed_batch(one, other))
        engines = {name: engine_of(s, session, threads=asked.threads) for name, s in (("base", other), ("new", one))}
        drop = _drop(other, one, engines, asked, session)
        session.say(f"measuring {one.path} against {other.path} in turns, until the gates are decided")
        done = session.must(
            Compare(
                base=engines["base"], new=engines["new"], target=one.target, split=one.split, gates=_timed(gates),
                most_rounds=asked.most_rounds, seed=asked.seed, limits=session.limits(),
            )
        )  # fmt: skip
        comparison = Comparison(
            created=datetime.now(UTC).isoformat(timespec="seconds"), target=place.target.name,
            base=replace(facts_of(other, engines["base"]), file=""),
            new=replace(facts_of(one, engines["new"]), file=""), paired=True, gates=gates,
            rounds=done.rounds, drop=drop, metric=one.metric.name if one.metric else "", machine=done.machine,
            sittings=done.sittings, warnings=done.warnings,
        )  # fmt: skip
        return Compared(_judged(comparison))


def _at(gates: Sequence[Gate], batch: int | None) -> tuple[Gate, ...]:
    """The gates on latency at the one batch size that a model takes, where it takes one only."""
    if batch is None:
        return tuple(gates)
    return tuple(dict.fromkeys(replace(gate, batch=batch) if gate.what == "latency" else gate for gate in gates))


def _timed(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    return tuple(gate for gate in gates if gate.what == "latency")


def _drop(base: Subject, new: Subject, engines: Mapping[str, Engine], asked: Asked, session: Session) -> Figure | None:
    """Of the metric, in points, on the rows that were given; None without rows to judge."""
    gated = any(gate.what == "metric" for gate in asked.gates)
    if new.metric is None:
        if gated:
            raise BadInput("a gate on the metric needs rows to judge both engines on", "give them with --data test.npz")
        return None
    session.say(f"scoring both on {new.split.rows} rows")
    start = time.monotonic()
    fields = {
        "split": new.split, "split_name": "given", "metric": new.metric, "signature": new.signature,
        "limits": Limits(seconds=max(session.left(), 120.0)),
    }  # fmt: skip
    said = session.must(Scored(engine=engines["base"], target=base.target, **fields))  # type: ignore[arg-type]
    found = session.must(Scored(engine=engines["new"], target=new.target, reference=said.outputs, **fields))  # type: ignore[arg-type]
    session.say(
        f"{new.metric.name} is {said.value:.4g} and {found.value:.4g} ({time.monotonic() - start:.0f} s)", "note"
    )
    return found.drop


def _of_records(base: Profile, new: Profile, asked: Asked) -> Comparison:
    """Round by round in their order. Raises BadInput for profiles of two machines, unless that was asked for."""
    foreign = [key for key in _MACHINE if base.measured.machine.get(key) != new.measured.machine.get(key)]
    if foreign and not asked.cross_machine:
        told = "; ".join(f"{k} {base.measured.machine.get(k)} and {new.measured.machine.get(k)}" for k in foreign[:3])
        raise BadInput(
            f"the profiles are of two machines ({told}): their times say nothing of the engines",
            "measure both engines on one machine; or say --cross-machine to compare engine and machine together",
        )
    if any(gate.what == "metric" for gate in asked.gates):
        raise BadInput("profiles hold no outputs to judge a metric by", "compare the engines themselves")
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"), target=new.target, base=base.engine, new=new.engine,
        paired=False, gates=asked.gates, rounds=_side_by_side(base, new, asked, through_yardstick=not foreign),
        machine=new.measured.machine, sittings=(*base.measured.sittings, *new.measured.sittings),
        warnings=(_CROSS if foreign else _RECORDED, *_versions(base, new)),
    )  # fmt: skip


def _side_by_side(base: Profile, new: Profile, asked: Asked, *, through_yardstick: bool) -> tuple[Record, ...]:
    made: list[Record] = []
    for gate in _timed(asked.gates):
        sides = [profile.scenario("single-stream", gate.batch, asked.threads) for profile in (base, new)]
        for profile, side in zip((base, new), sides, strict=True):
            if side is None:
                raise BadInput(
                    f"the profile of {profile.engine.name} has no single stream of batch {gate.batch}",
                    f"record it with `petra-deploy bench ENGINE --batch {gate.batch} --save FILE.json`",
                )
        before, after = (side.rounds for side in sides if side is not None)
        for index, (b, n) in enumerate(zip(before, after, strict=False)):
            if index == len(made):
                made.append({"threads": 1, "batches": {}})
            calls = {"baseline": b["engine"], "candidate": n["engine"]}
            if through_yardstick:
                calls["yardsticks"] = {"baseline": b["yardstick"], "candidate": n["yardstick"]}
            made[index]["batches"][str(gate.batch)] = calls
    return tuple(made)


def _versions(base: Profile, new: Profile) -> tuple[str, ...]:
    names = sorted({*base.engine.versions, *new.engine.versions})
    changed = [(n, base.engine.versions.get(n, "none"), new.engine.versions.get(n, "none")) for n in names]
    return tuple(f"{n} was {a} and is {b}" for n, a, b in changed if a != b)
