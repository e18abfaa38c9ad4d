"""A profile of one engine: `petra-deploy bench`, and what `compare` and CI measure with.

    profile = bench(Path("model.onnx"), Asked(target="cpu"), Wanted(threads=(1, 2)), Rows(), logs, on_event)

A bundle is opened with the runtime and settings that it ships with; an ONNX file is built by the target's runtime.
Each number of threads is an engine and a job of its own. `Asked.seconds` is divided among them, so that all of it,
with starting and building, takes about that long at most; a fast engine takes less.
"""

import datetime
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import files, machine
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent
from petra_deploy.core.job import Bench, Limits
from petra_deploy.core.outcome import Budget
from petra_deploy.core.profile import Benched, Profile, Wanted
from petra_deploy.core.request import Request
from petra_deploy.core.workload import LoadOptions, ModelSource
from petra_deploy.driver import profiles
from petra_deploy.driver.build import Asked, at_hand
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.session import open_session
from petra_deploy.driver.subject import Rows, engine_of, facts_of, locate, take

SECONDS = 60.0  # in all, where nothing else is asked
_APART = 8.0  # of them: workers start, engines are built, processes started cold
_UNITS = {"single-stream": 1.9, "multi-stream": 1.9, "offline": 1.2, "server": 8.0}  # of `Bench.seconds`, a round
_LEAST, _MOST_OF_A_MINUTE = 0.1, 1.0  # of `Bench.seconds`


def bench(
    path: Path, asked: Asked, wanted: Wanted, rows: Rows, logs: Path, on_event: OnEvent, *, save: Path | None = None
) -> Profile:
    """Measure, and write the profile where `save` says.

    Raises BadInput where `path` names nothing that can be measured or `save` nothing that can be written,
    TargetAbsent where the target is not here, MissingExtra where its runtime is not installed.
    """
    if save is not None:
        profiles.writable(save)
    request = Request(
        model=ModelSource(path=str(locate(path).absolute())), data=rows.data,
        load=LoadOptions(inputs=rows.inputs, metric=rows.metric), target=asked.target or target_of(path),
        remote=asked.remote, budget=Budget(seconds=asked.seconds), seed=wanted.seed,
    )  # fmt: skip
    with open_session(request, logs, on_event) as session:
        place = at_hand(request.target, asked.runtime, session)
        subject = take(path, place, session, rows, runtime=asked.runtime)
        for note in subject.notes:
            session.say(note, "note")
        engines = [engine_of(subject, session, threads=count) for count in wanted.threads or (None,)]
        parts = []
        for engine in engines:
            session.say(f"measuring {path.name} with {engine.backend}, {engine.settings.get('threads', 1)} thread(s)")
            job = Bench(
                engine=engine, target=subject.target, split=subject.split, scenarios=wanted.scenarios,
                batches=wanted.batches, rounds=wanted.rounds, seconds=seconds_of(wanted, asked.seconds),
                limit_ms=wanted.limit_ms, streams=wanted.streams, seed=wanted.seed,
                starts=Bench.starts if engine is engines[0] else 0,
                limits=Limits(seconds=max(session.limits().seconds, 2 * asked.seconds)),  # a busy machine takes longer
            )  # fmt: skip
            parts.append(session.must(job))
        profile = Profile(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            target=subject.target.name,
            engine=facts_of(subject, engines[0]),
            measured=joined(parts),
        )
    if save is not None:
        profiles.write(save, profile)
    return profile


def target_of(path: Path) -> str:
    """The target that a bundle was made for; "cpu" of anything else. Raises BadInput where that is not known here."""
    for folder in (path, path / "bundle"):
        if (folder / "manifest.json").is_file():
            name = files.read_json(folder / "manifest.json", Manifest).target.name
            if name not in machine.targets():
                raise BadInput(f"{folder} was made for {name}, and no target of that name is known here",
                               "name one with --target: cpu, or the target's FILE.toml")  # fmt: skip
            return name
    return "cpu"


def seconds_of(wanted: Wanted, budget: float) -> float:
    """What a scenario may run in a round, at each batch size, so that all of them fit `budget` seconds."""
    many = {"single-stream": len(wanted.batches), "offline": len(wanted.batches)}
    units = sum(_UNITS[name] * many.get(name, 1) for name in wanted.scenarios) * wanted.rounds
    share = (budget - _APART) / (units * max(1, len(wanted.threads)))
    return max(_LEAST, min(share, _MOST_OF_A_MINUTE * budget / SECONDS))


def joined(parts: list[Benched]) -> Benched:
    """Measurements of one model at several numbers of threads, as one; cold start and memory are the first's."""
    first = parts[0]
    return replace(
        first,
        scenarios=tuple(scenario for part in parts for scenario in part.scenarios),
        sittings=tuple(sitting for part in parts for sitting in part.sittings),
        warnings=tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
    )
