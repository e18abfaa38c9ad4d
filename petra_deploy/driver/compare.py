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
from petra_deploy.core.event import Event, OnEvent
from petra_deploy.core.job import Compare, Limits, Scored
from petra_deploy.core.outcome import Budget, Engine, Figure
from petra_deploy.core.profile import Profile, Scenario, Wanted
from petra_deploy.core.request import Remote, Request
from petra_deploy.core.verdict import judge
from petra_deploy.core.workload import ModelSource
from petra_deploy.driver import profiles
from petra_deploy.driver.bench import SECONDS, bench
from petra_deploy.driver.build import Asked as BenchAsked
from petra_deploy.driver.build import at_hand
from petra_deploy.driver.operators import explain
from petra_deploy.driver.place import Place
from petra_deploy.driver.session import Session, open_session
from petra_deploy.driver.subject import Rows, Subject, engine_of, facts_of, feeding, fixed_batch, take

_ROUNDS = 9  # of an engine that is recorded now
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


@dataclass(frozen=True)
class Named:
    """An engine that was named, itself or by a profile of it, whose settings are then its own."""

    path: Path
    engine: Path | None  # None: its profile is left of it
    profile: Profile | None

    def take(self, place: Place, session: Session, asked: Asked) -> Subject:
        recorded = "" if self.profile is None else self.profile.engine.runtime
        subject = take(self.there, place, session, asked.rows, runtime=asked.runtime or recorded)
        if self.profile is None or recorded != subject.target.runtime:
            return subject
        return replace(subject, settings=self.profile.engine.settings)

    @property
    def there(self) -> Path:
        return self.engine or self.path


def again(path: Path) -> Comparison:
    """The comparison in a file, judged anew from its rounds. Raises BadInput where it is none."""
    data = files.parse_json(path) if path.suffix == ".json" else {}
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != "petra-deploy/comparison/1":
        later = str(schema).startswith("petra-deploy/comparison/")
        raise BadInput(
            f"{path} is a comparison of a later version" if later else f"there is nothing to compare {path} with",
            "upgrade petra-deploy" if later else "name two engines; a file of `compare --save` alone is judged again",
        )
    found = files.decode(data, Comparison, str(path))
    try:
        return replace(found, verdicts=judge(found))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{path} holds rounds that cannot be judged: {type(error).__name__}: {error}",
                       "compare the engines again") from None  # fmt: skip


def compare(base: Path, new: Path, asked: Asked, logs: Path, on_event: OnEvent) -> Compared:
    """Raises BadInput where the two cannot be compared, TargetAbsent where the target is not here."""
    sides = [_named(path) for path in (base, new)]
    if not asked.recorded and all(side.engine for side in sides):
        return _measured(sides[0], sides[1], asked, logs, on_event)
    if asked.explain:
        raise BadInput("--explain times the engines' operators, and a record holds none", "name the engines themselves")
    if any(side.profile is None for side in sides) and (asked.recorded or any(g.what == "metric" for g in asked.gates)):
        raise BadInput(
            "a record is compared with a record only", "petra-deploy bench ENGINE --save FILE.json makes one"
        )
    records = [side.profile or _recorded_now(side, sides, asked, logs, on_event) for side in sides]
    return Compared(_judged(_of_records(records[0], records[1], asked)))


def _named(path: Path) -> Named:
    if not profiles.is_profile(path):
        return Named(path, path, None)
    profile = profiles.read(path)
    return Named(path, profiles.subject_of(path, profile), profile)


def _recorded_now(side: Named, sides: Sequence[Named], asked: Asked, logs: Path, on_event: OnEvent) -> Profile:
    """Of an engine whose opponent is there no more, but for its profile: measured now, as that was."""
    gone = next(other for other in sides if other.profile is not None)
    on_event(
        Event(
            kind="warning",
            text=f"the engine of {gone.path} is not there, or has changed since: {side.path} is measured now, and "
            "compared with that record",
        )
    )
    wanted = Wanted(scenarios=("single-stream",), batches=tuple(gate.batch for gate in _timed(asked.gates)),
                    threads=(asked.threads,) if asked.threads else (), rounds=_ROUNDS, seed=asked.seed)  # fmt: skip
    options = BenchAsked(target=asked.target, runtime=asked.runtime, remote=asked.remote, seconds=SECONDS)
    return bench(side.path, options, wanted, asked.rows, logs, on_event)


def _judged(comparison: Comparison) -> Comparison:
    return replace(comparison, verdicts=judge(comparison))


def _measured(base: Named, new: Named, asked: Asked, logs: Path, on_event: OnEvent) -> Compared:
    request = Request(
        model=ModelSource(path=str(new.there.absolute())), data=asked.rows.data, target=asked.target,
        remote=asked.remote, budget=Budget(seconds=asked.seconds),
    )  # fmt: skip
    folder = base.there if base.there.is_dir() else base.there.parent
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
        return Compared(_judged(comparison), _explained(other, one, session) if asked.explain else ())


def _explained(base: Subject, new: Subject, session: Session) -> tuple[str, ...]:
    session.say("timing every operator of both")
    found = explain(base, new, session)
    return tuple(change.sentence for change in found) or ("no layer is slower by more than the rounds scatter",)


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
        before = _stream(base, gate.batch, asked.threads)
        after = _stream(new, gate.batch, before.threads)
        threads = 0 if new.measured.machine.get("gpus") else before.threads  # as worker/jobs/compare.py counts them
        for index, (b, n) in enumerate(zip(before.rounds, after.rounds, strict=False)):
            if index == len(made):
                made.append({"threads": threads, "batches": {}})
            calls = {"baseline": b["engine"], "candidate": n["engine"]}
            if through_yardstick:
                calls["yardsticks"] = {"baseline": b["yardstick"], "candidate": n["yardstick"]}
            made[index]["batches"][str(gate.batch)] = calls
    return tuple(made)


def _stream(profile: Profile, batch: int, threads: int | None) -> Scenario:
    """The single stream of this batch size and these threads. Raises BadInput where the profile has none."""
    found = profile.scenario("single-stream", batch, threads)
    if found is None:
        of = f"batch {batch}" + (f" and {threads} thread(s)" if threads else "")
        raise BadInput(
            f"the profile of {profile.engine.name} has no single stream of {of}",
            f"record it with `petra-deploy bench ENGINE --batch {batch} --threads {threads or 1} --save FILE.json`",
        )
    return found


def _versions(base: Profile, new: Profile) -> tuple[str, ...]:
    """What changed between the two records; the yardstick is arithmetic of numpy's."""
    before, after = ({**p.engine.versions, "numpy": _numpy(p)} for p in (base, new))
    changed = [(n, before.get(n, "none"), after.get(n, "none")) for n in sorted({*before, *after})]
    told = [f"{n} was {a} and is {b}" for n, a, b in changed if a != b]
    return tuple(
        f"{text}: the yardstick may have changed with it" if text.startswith("numpy") else text for text in told
    )


def _numpy(profile: Profile) -> str:
    versions = profile.measured.machine.get("versions")
    return str(versions.get("numpy", "unknown")) if isinstance(versions, dict) else "unknown"
