"""The same power as the command line, in three lines.

    import petra_deploy
    result = petra_deploy.optimize(model, data=(x, y), target="cpu", max_drop=1.0)
    outputs = petra_deploy.load_bundle(result.bundle).run({"x": x[:8]})

`model` is a path (any form that the command line takes) or a `torch.nn.Module` in memory; data is a
path, a dict of arrays, an (inputs, target) pair, or a dict of splits. An object handed over here
travels to the workers by cloudpickle: this very process vouches for it.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent, silent
from petra_deploy.core.folder import default_out, open_run
from petra_deploy.core.job import Inspect
from petra_deploy.core.outcome import Budget, Front, Goal, Outcome
from petra_deploy.core.plan import Inspected
from petra_deploy.core.request import Request
from petra_deploy.core.workload import DataSource, Loaded, LoadOptions, ModelSource
from petra_deploy.driver import optimize as _optimize
from petra_deploy.driver import reapply as _reapply
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.optimize import Finished
from petra_deploy.driver.session import open_session
from petra_deploy.runtime import load_bundle

DEFAULT_SECONDS = 900.0
_SECONDS_A_TRIAL = 30.0  # where --trials is given alone
Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Result:
    """`bundle` is the folder that ships; `trials` are all candidates, failed ones too."""

    bundle: Path | None
    front: Front
    trials: tuple[Outcome, ...]
    manifest: Manifest | None
    out: Path


@dataclass(frozen=True)
class Inspection:
    """What the model is made of and what may be done to it."""

    loaded: Loaded
    inspected: Inspected


def optimize(
    model: Any = None,
    *,
    data: Any = None,
    train: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    target: str = "cpu",
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: str | None = None,
    max_drop: float = 1.0,
    objective: Objective = "latency",
    trials: int | None = None,
    time: float | str | None = None,
    sampler: str = "cma",
    seed: int = 0,
    device: str = "auto",
    batches: Sequence[int] = (1, 16),
    out: str | Path | None = None,
    storage: str | None = None,
    resume: bool = False,
    on_event: OnEvent = silent,
) -> Result:
    """Search for the fastest engine whose metric drops at most `max_drop` points, and package it.

    `time` is in seconds, or text such as "20m"; it defaults to 15 minutes, or to half a minute a
    trial where only `trials` is given. Raises a PetraError: NotMet (exit code 1) where no strategy
    met the budget, BadInput (2), TargetAbsent (3), MissingExtra (4), OutOfDisk (75),
    Interrupted (130).
    """
    source = _model(model, model_factory, trust, out)
    folder = _out(out, source, data)
    with open_run(folder, resume) as run:
        request = Request(
            model=_handed_over(source, model, folder),
            data=_data(data, train, selection, test, folder),
            load=LoadOptions(inputs=tuple(inputs), metric=_metric(metric), seed=seed),
            target=_target(target),
            goal=_goal(objective, max_drop, batches),
            budget=_budget(trials, time),
            sampler=sampler,
            seed=seed,
            device=device,
        )
        run.begin(request)
        with _optimize.interruptible(run):
            return _result(_optimize.optimize(request, run, storage, on_event))


def apply(
    strategy: str | Path,
    model: Any = None,
    *,
    data: Any = None,
    train: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    target: str = "cpu",
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: str | None = None,
    max_drop: float = 1.0,
    objective: Objective = "latency",
    seed: int = 0,
    device: str = "auto",
    batches: Sequence[int] = (1, 16),
    out: str | Path | None = None,
    time: float | str | None = None,
    resume: bool = False,
    on_event: OnEvent = silent,
) -> Result:
    """Run the steps of a `strategy.json` on a model: the same one, or its next training.

    Raises NotMet where the drop or the speedup no longer holds, BadInput where the architecture
    is another one.
    """
    if not Path(strategy).is_file():
        raise BadInput(f"{strategy} does not exist", "give the strategy.json of a bundle")
    source = _model(model, model_factory, trust, out)
    folder = _out(out, source, data, suffix="-applied")
    with open_run(folder, resume) as run:
        request = Request(
            model=_handed_over(source, model, folder),
            data=_data(data, train, selection, test, folder),
            load=LoadOptions(inputs=tuple(inputs), metric=_metric(metric), seed=seed),
            target=_target(target),
            goal=_goal(objective, max_drop, batches),
            budget=_budget(1, time or 3600.0),
            seed=seed,
            device=device,
        )
        run.begin(request)
        with _optimize.interruptible(run):
            return _result(_reapply.apply(Path(strategy), request, run, on_event))


def inspect(
    model: Any = None,
    *,
    data: Any = None,
    train: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    target: str = "cpu",
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: str | None = None,
    on_event: OnEvent = silent,
) -> Inspection:
    """What form the model has, its inputs, groups, and which techniques apply and which not, and why."""
    with tempfile.TemporaryDirectory(prefix="petra-inspect-") as scratch:
        folder = Path(scratch)
        source = _model(model, model_factory, trust, scratch)
        request = Request(
            model=_handed_over(source, model, folder),
            data=_data(data, train, selection, test, folder),
            load=LoadOptions(inputs=tuple(inputs), metric=_metric(metric)),
            target=_target(target),
            budget=Budget(seconds=DEFAULT_SECONDS),
        )
        place = _optimize.here(request.target)
        with open_run(folder, False) as run, open_session(request, run.logs, on_event) as session:
            loaded = _optimize.load(request, run, session)
            inspected = session.must(Inspect(workload=loaded.workload, target=place, limits=session.limits()))
            return Inspection(loaded, inspected)


def seconds(text: float | str) -> float:
    """A time budget: 90, "90s", "20m", "1.5h". Raises BadInput."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if value <= 0:
        raise BadInput(f"{text!r} is not a time", "write it as 90s, 20m or 2h")
    return value


def _budget(trials: int | None, time: float | str | None) -> Budget:
    if trials is not None and trials < 1:
        raise BadInput(f"{trials} trials are too few", "ask for at least one")
    if time is None:
        return Budget(trials=trials, seconds=min(DEFAULT_SECONDS, max(trials * _SECONDS_A_TRIAL, 120.0)) if trials
                      else DEFAULT_SECONDS)  # fmt: skip
    return Budget(trials=trials, seconds=seconds(time))


def _goal(objective: Objective, max_drop: float, batches: Sequence[int]) -> Goal:
    if objective not in ("latency", "throughput", "size"):
        raise BadInput(f"{objective!r} is not an objective", "choose latency, throughput or size")
    if not max_drop >= 0:
        raise BadInput(f"a drop of {max_drop} points is not possible", "give a number from 0 upwards")
    if not batches or any(b < 1 for b in batches):
        raise BadInput(f"batch sizes {tuple(batches)} are not possible", "give numbers from 1 upwards, as 1,16")
    return Goal(objective=objective, max_drop=max_drop, batches=tuple(batches))


def _model(model: Any, factory: str | None, trust: bool, out: Any) -> ModelSource:
    """Where the model is; an object in memory is written into the run folder later."""
    if model is None and factory is None:
        raise BadInput("no model was given", "give a model file, or --model file.py:factory")
    factory = _absolute_reference(factory) if factory else None
    if model is None:
        return ModelSource(path=None, factory=factory, trust=trust)
    if isinstance(model, str | Path):
        if not Path(model).exists():
            raise BadInput(f"{model} does not exist", "give the path of the model file")
        if Path(model).is_dir():
            raise BadInput(f"{model} is a folder, not a model file", "give the path of the model file")
        return ModelSource(path=str(Path(model).absolute()), factory=factory, trust=trust)
    return ModelSource(path=None, factory=factory, trust=True, cloudpickled=True)


def _absolute_reference(reference: str) -> str:
    """ "file.py:name" with the file made absolute; "package.module:name" as it is."""
    path, colon, name = reference.rpartition(":")
    if not colon or not name or not path:
        raise BadInput(
            f"{reference!r} does not name a function", "write it as file.py:function or package.module:function"
        )
    if path.endswith(".py") or "/" in path:
        if not Path(path).is_file():
            raise BadInput(f"{path} does not exist", "give the path of the Python file before the colon")
        return f"{Path(path).absolute()}:{name}"
    return reference


def _metric(metric: str | None) -> str | None:
    return _absolute_reference(metric) if metric and ":" in metric else metric


def _target(target: str) -> str:
    return str(Path(target).absolute()) if target.endswith(".toml") else target


def _out(out: str | Path | None, source: ModelSource, data: Any, suffix: str = "") -> Path:
    if out is not None:
        return Path(out).absolute()
    found = default_out(source.path, source.factory, data if isinstance(data, str) else None)
    return found.with_name(found.name + suffix).absolute()


def _handed_over(source: ModelSource, model: Any, folder: Path) -> ModelSource:
    """The source, with an object in memory now in a file of the run folder."""
    if not source.cloudpickled:
        return source
    return ModelSource(path=str(_pickle(model, folder / "input" / "model.pkl")), trust=True, cloudpickled=True)


def _data(data: Any, train: Any, selection: Any, test: Any, folder: Path) -> DataSource:
    parts = {"train": train, "selection": selection, "test": test}
    if data is not None and any(part is not None for part in parts.values()):
        raise BadInput(
            "both one data source and separate splits were given", "use --data, or --train, --selection and --test"
        )
    if data is not None and not isinstance(data, str | Path):
        return DataSource(path=str(_pickle(data, folder / "input" / "data.pkl")), cloudpickled=True)
    for path in (data, *parts.values()):
        if path is not None and not Path(path).exists():
            raise BadInput(f"{path} does not exist", "give a .npz file, a folder of .npz files, or a workload.py")

    def absolute(part: Any) -> str | None:
        return str(Path(part).absolute()) if part is not None else None

    return DataSource(path=absolute(data), train=absolute(train), selection=absolute(selection), test=absolute(test))


def _pickle(value: Any, path: Path) -> Path:
    import cloudpickle

    try:
        content = cloudpickle.dumps(value)
    except Exception as error:
        raise BadInput(
            f"the object cannot be sent to a worker: {error}", "save it to a file and give its path"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _result(finished: Finished) -> Result:
    return Result(finished.bundle, finished.front, finished.trials, finished.manifest, finished.out)


__all__ = ["Inspection", "Result", "apply", "inspect", "load_bundle", "optimize", "seconds"]
