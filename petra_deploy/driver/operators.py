"""Where engines' time goes, layer by layer, before and after: `profile-ops`, and the words of `compare --explain`.

report = profile_ops("out/bundle")              # against out/baseline, whose hash the manifest has
changes = explain(base, new, session)           # of two Subjects: the layers that got slower

Layers go by the names of the original model's modules. Where one runtime fused what the other runs apart, and where
only one of two names goes as deep as a part of a module, these are compared as one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petra_deploy.core.arguments import data_source
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent, silent
from petra_deploy.core.job import ProfileOps
from petra_deploy.core.operators import Change, OpsReport, Profiled
from petra_deploy.core.outcome import Budget
from petra_deploy.core.request import Request, parse_duration
from petra_deploy.core.store import digest_file
from petra_deploy.core.workload import ModelSource
from petra_deploy.driver.build import at_hand
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.layers import changes, slower, stayed_float
from petra_deploy.driver.session import Session, kept_logs, open_session
from petra_deploy.driver.subject import Rows, Subject, engine_of, feeding, locate, take


def profile_ops(
    engine: str | Path,
    *,
    against: str | Path | None = None,
    data: Any = None,
    inputs: Sequence[str] = (),
    batch: int = 1,
    target: str = "",
    runtime: str = "",
    time: float | str = 600.0,
    on_event: OnEvent = silent,
) -> OpsReport:
    """Where an engine's time goes, by layer of the original model; `against` another one, layer by layer.

    `engine` and `against` are bundles, folders with a model.onnx or .onnx files. For a bundle in its run folder
    `against` is the run's baseline where it is not given. Without `data` both are fed made-up rows.

    Raises BadInput where a path names no engine or its runtime has no profiler, TargetAbsent where the bundle's
    target is not here, MissingExtra where its runtime is not installed.
    """
    path = Path(engine)
    beside = Path(against) if against else baseline_of(path)
    with kept_logs("profile-ops") as folder:
        rows = Rows(data=data_source(data, None, None, None, folder), inputs=tuple(inputs))
        request = Request(
            model=ModelSource(path=str(locate(path).resolve())), data=rows.data, target=target or _target_of(path),
            budget=Budget(seconds=parse_duration(time)),
        )  # fmt: skip
        read = [] if beside is None else [locate(beside).resolve().parent]
        with open_session(request, folder, on_event, read=read) as session:
            place = at_hand(request.target, runtime, session)
            new = take(path, place, session, rows, runtime=runtime)
            base = None if beside is None else take(beside, place, session, rows, runtime=runtime)
            session.say(f"profiling {path}{f' against {beside}' if beside else ''} on {place.target.name}")
            profiled = profiled_of(base, new, session, batch)
    return OpsReport(
        target=place.target.name, engine=str(path), base=str(beside or ""), profiled=profiled,
        changes=changes(profiled.base, profiled.engine), stayed_float=stayed_float(profiled.engine),
    )  # fmt: skip


def explain(base: Subject, new: Subject, session: Session) -> tuple[Change, ...]:
    """The layers of `new` that are slower than those of `base`, by their intervals; the one that lost most first.

    Both are fed with the rows of `new`. Raises BadInput where a backend has no profiler, or their inputs differ.
    """
    profiled = profiled_of(base, new, session)
    if profiled.base is None:
        raise BadInput("there is nothing to compare with")
    return slower(profiled.base, profiled.engine)


def profiled_of(base: Subject | None, new: Subject, session: Session, batch: int = 1) -> Profiled:
    """Both engines in turns, in one job, fed alike."""
    return session.must(
        ProfileOps(
            engine=engine_of(new, session), base=None if base is None else engine_of(feeding(base, new), session),
            target=new.target, split=new.split, batch=batch, limits=session.limits(),
        )
    )  # fmt: skip


def baseline_of(path: Path) -> Path | None:
    """The baseline beside a bundle in its run folder, if it is the one that the manifest names; else None."""
    folder = _bundle(path)
    if folder is None:
        return None
    beside = folder.parent / "baseline"
    model = beside / "model.onnx"
    if not model.is_file() or digest_file(model) != verify(folder).baseline.sha256:
        return None
    return beside


def _target_of(path: Path) -> str:
    folder = _bundle(path)
    return "cpu" if folder is None else verify(folder).target.name


def _bundle(path: Path) -> Path | None:
    """The bundle that `path` names; None where it names an ONNX file or a plain folder."""
    folder = locate(path).parent
    return folder if path.is_dir() and (folder / "manifest.json").is_file() else None
