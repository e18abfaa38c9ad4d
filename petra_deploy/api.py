"""The same power as the command line, in three lines.

    import petra_deploy
    result = petra_deploy.optimize(model, data=(x, y), target="cpu", max_drop=1.0)
    outputs = petra_deploy.load_bundle(result.bundle).run({"x": x[:8]})

`model` is a path (any form that the command line takes) or a `torch.nn.Module` in memory; data is a
path, a dict of arrays, an (inputs, target) pair, or a dict of splits. An object handed over here
travels to the workers by cloudpickle: this very process vouches for it. `metric` may be a function
f(outputs, targets) -> float; `f.higher_is_better = False` and `f.bounded = True` say what it is.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petra_deploy.core.arguments import (
    DEFAULT_SECONDS,
    Metric,
    Objective,
    budget,
    data_source,
    goal,
    handed_over,
    metric_name,
    model_source,
    out_folder,
    place,
    sampler_name,
    technique_names,
)
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import OnEvent, silent
from petra_deploy.core.folder import interruptible, open_run
from petra_deploy.core.job import Inspect
from petra_deploy.core.outcome import Budget, Front, Goal, Outcome
from petra_deploy.core.plan import Inspected
from petra_deploy.core.request import Request, parse_duration
from petra_deploy.core.workload import Loaded, LoadOptions
from petra_deploy.driver import build as _build
from petra_deploy.driver import optimize as _optimize
from petra_deploy.driver import reapply as _reapply
from petra_deploy.driver.build import Asked
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.optimize import Finished
from petra_deploy.driver.place import find
from petra_deploy.driver.session import kept_logs, open_session
from petra_deploy.runtime import load_bundle


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
    runtime: str = "",
    require_measured: bool = False,
    remote: str | None = None,
    remote_python: str | None = None,
    certify: bool = False,
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: Metric = None,
    max_drop: float = 1.0,
    objective: Objective = "latency",
    trials: int | None = None,
    time: float | str | None = None,
    with_techniques: Sequence[str] = (),
    without_techniques: Sequence[str] = (),
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
    trial where only `trials` is given. Where no strategy met the budget, the result's `bundle` is
    None and `front.why` says why. For a target that is not here latencies are predicted, and say so in
    every figure's origin; `require_measured` refuses it instead. Finalists are tried in every runtime of
    the target that is installed; `runtime` names one for the whole run, the baseline too. With `remote`,
    "user@host" or "host:port", engines are built, run and measured on that machine over ssh, by its
    `remote_python` (docs/remote.md); target="ssh://user@host/t4" says the same. `certify` computes on
    which processors the accuracy holds, and the manifest says so. `with_techniques` names techniques that are
    off unless asked for, `without_techniques` such as are not to be tried (docs/techniques.md).

    Raises a PetraError: NotMet (exit code 1) where the search is hopeless, BadInput (2),
    TargetAbsent (3), MissingExtra (4), OutOfDisk (75), Interrupted (130).
    """
    name, there = place(target, remote, remote_python)
    source = model_source(model, model_factory, trust, data)
    folder = out_folder(out, source, data)
    with open_run(folder, resume) as run:
        request = Request(
            model=handed_over(source, model, folder),
            data=data_source(data, train, selection, test, folder),
            load=LoadOptions(inputs=tuple(inputs), metric=metric_name(metric, folder), seed=seed),
            target=name,
            runtime=runtime,
            require_measured=require_measured,
            remote=there,
            certify=certify,
            goal=goal(objective, max_drop, batches),
            budget=budget(trials, time),
            with_techniques=technique_names(with_techniques),
            without_techniques=technique_names(without_techniques),
            sampler=sampler_name(sampler),
            seed=seed,
            device=device,
        )
        run.begin(request)
        with interruptible(run):
            return result_of(_optimize.optimize(request, run, storage, on_event))


def apply(
    strategy: str | Path,
    model: Any = None,
    *,
    data: Any = None,
    train: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    target: str = "cpu",
    runtime: str = "",
    require_measured: bool = False,
    remote: str | None = None,
    remote_python: str | None = None,
    certify: bool = False,
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: Metric = None,
    max_drop: float | None = None,
    objective: Objective | None = None,
    seed: int = 0,
    device: str = "auto",
    batches: Sequence[int] = (1, 16),
    out: str | Path | None = None,
    time: float | str | None = None,
    resume: bool = False,
    on_event: OnEvent = silent,
) -> Result:
    """Run the steps of a `strategy.json` on a model: the same one, or its next training.

    `max_drop`, `objective` and `metric` are the strategy's own where they are not given; a metric
    that is a function is named again, since a strategy may be a stranger's.

    Raises NotMet where the drop or the speedup no longer holds, BadInput where the architecture
    is another one.
    """
    if not Path(strategy).is_file():
        raise BadInput(f"{strategy} does not exist", "give the strategy.json of a bundle")
    recipe = recipes.read(Path(strategy))
    asked = recipe.goal or Goal()
    name, there = place(target, remote, remote_python)
    source = model_source(model, model_factory, trust, data)
    folder = out_folder(out, source, data, suffix="-applied")
    with open_run(folder, resume) as run:
        request = Request(
            model=handed_over(source, model, folder),
            data=data_source(data, train, selection, test, folder),
            load=LoadOptions(
                inputs=tuple(inputs), metric=metric_name(metric or recipe.known_metric(data), folder), seed=seed
            ),
            target=name,
            runtime=runtime,
            require_measured=require_measured,
            remote=there,
            certify=certify,
            goal=goal(objective or asked.objective, asked.max_drop if max_drop is None else max_drop, batches),
            budget=budget(1, time or 3600.0),
            seed=seed,
            device=device,
        )
        run.begin(request)
        with interruptible(run):
            return result_of(_reapply.apply(Path(strategy), request, run, on_event))


def build(
    bundle: str | Path, *, target: str = "", runtime: str = "", time: float | str = 600.0, on_event: OnEvent = silent
) -> Manifest:
    """Build the engine of a bundle for this machine and put it in; the bundle's figures stay.

    Raises TargetAbsent where the bundle's target is not here, MissingExtra where its runtime is not installed,
    NotMet where the engine does not compute what the bundle's file says.
    """
    asked = Asked(target=target, runtime=runtime, seconds=parse_duration(time))
    with kept_logs("build") as logs:
        return _build.build(Path(bundle), asked, logs, on_event)


def inspect(
    model: Any = None,
    *,
    data: Any = None,
    train: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    target: str = "cpu",
    remote: str | None = None,
    remote_python: str | None = None,
    model_factory: str | None = None,
    trust: bool = False,
    inputs: Sequence[str] = (),
    metric: Metric = None,
    on_event: OnEvent = silent,
) -> Inspection:
    """What form the model has, its inputs, groups, and which techniques apply and which not, and why."""
    name, there = place(target, remote, remote_python)
    with tempfile.TemporaryDirectory(prefix="petra-inspect-") as scratch:
        folder = Path(scratch)
        source = model_source(model, model_factory, trust, data)
        request = Request(
            model=handed_over(source, model, folder),
            data=data_source(data, train, selection, test, folder),
            load=LoadOptions(inputs=tuple(inputs), metric=metric_name(metric, folder)),
            target=name,
            remote=there,
            budget=Budget(seconds=DEFAULT_SECONDS),
        )
        with open_run(folder, False) as run, open_session(request, run.logs, on_event) as session:
            found = find(request.target, look=session.look)
            loaded = _optimize.load(request, run, session)
            inspected = session.must(Inspect(workload=loaded.workload, target=found.target, limits=session.limits()))
            return Inspection(loaded, inspected)


def result_of(finished: Finished) -> Result:
    """What a run came to, as callers see it."""
    return Result(finished.bundle, finished.front, finished.trials, finished.manifest, finished.out)


__all__ = ["Inspection", "Result", "apply", "build", "inspect", "load_bundle", "optimize"]
