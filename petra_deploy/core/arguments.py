"""What a caller gives, as the types of a `Request`: checked here, once, for the API and the command line.

Paths become absolute; an object handed over in memory (a module, arrays, an iterable) is written into
the run folder by cloudpickle, since this very process vouches for it.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from petra_deploy.core import registry
from petra_deploy.core.errors import BadInput
from petra_deploy.core.folder import default_out
from petra_deploy.core.outcome import Budget, Goal
from petra_deploy.core.profile import Wanted
from petra_deploy.core.request import Remote, parse_duration, parse_milliseconds, parse_scenarios
from petra_deploy.core.workload import DataSource, ModelSource

DEFAULT_SECONDS = 900.0
DEFAULT_SCENARIOS = Wanted().scenarios
_SECONDS_A_TRIAL = 30.0  # where trials are given alone
_HOST = re.compile(
    r"(?P<host>(?:\w[\w.+-]*@)?(?:\w[\w.-]*|\[[0-9a-fA-F:.]+(?:%\w+)?\]))(?::(?P<port>[0-9]{1,5}))?", re.A
)
Metric = str | Callable[[Any, Any], float] | None
Objective = Literal["latency", "throughput", "size"]


def budget(trials: int | None, time: float | str | None) -> Budget:
    if trials is not None and trials < 1:
        raise BadInput(f"{trials} trials are too few", "ask for at least one")
    if time is None:
        return Budget(trials=trials, seconds=max(trials * _SECONDS_A_TRIAL, 120.0) if trials else DEFAULT_SECONDS)
    return Budget(trials=trials, seconds=parse_duration(time))


def goal(objective: Objective, max_drop: float, batches: Sequence[int]) -> Goal:
    if objective not in ("latency", "throughput", "size"):
        raise BadInput(f"{objective!r} is not an objective", "choose latency, throughput or size")
    if not max_drop >= 0:
        raise BadInput(f"a drop of {max_drop} points is not possible", "give a number from 0 upwards")
    if not batches or any(b < 1 for b in batches):
        raise BadInput(f"batch sizes {tuple(batches)} are not possible", "give numbers from 1 upwards, as 1,16")
    return Goal(objective=objective, max_drop=max_drop, batches=tuple(batches))


def bench_options(
    scenarios: Sequence[str] | str, batches: Sequence[int], threads: Sequence[int], rounds: int,
    latency_limit: float | str | None, streams: int, seed: int,
) -> Wanted:  # fmt: skip
    for what, numbers in (("batch sizes", batches), ("threads", threads), ("rounds", [rounds]), ("streams", [streams])):
        if any(not isinstance(n, int) or n < 1 for n in numbers) or len(set(numbers)) != len(numbers):
            raise BadInput(f"{what} of {tuple(numbers)} are not possible", "give distinct whole numbers from 1 upwards")
    if not batches:
        raise BadInput("no batch size was given", "give numbers from 1 upwards, as 1,16")
    limit = None if latency_limit is None else parse_milliseconds(latency_limit)
    return Wanted(scenarios=parse_scenarios(scenarios), batches=tuple(batches), threads=tuple(threads), rounds=rounds,
                  limit_ms=limit, streams=streams, seed=seed)  # fmt: skip


def refuse(given: Mapping[str, Any], instead: str) -> None:
    """Raises BadInput where an argument was given that has no meaning here."""
    if named := [name.replace("_", "-") for name, value in given.items() if value is not None]:
        raise BadInput(f"--{named[0]} has no meaning for a predicted run, whose finalists are measured against each "
                       "other", f"petra-deploy {instead} takes it")  # fmt: skip


def model_source(model: Any, factory: str | None, trust: bool, data: Any) -> ModelSource:
    """Where the model is; an object in memory is written into the run folder later.

    A workload.py given as `data` may bring the model: whether it does is seen when it is loaded.
    """
    script = isinstance(data, str | Path) and str(data).endswith(".py")
    if model is None and factory is None and not script:
        raise BadInput(
            "no model was given", "give a model file, --model file.py:factory, or a workload.py with `model`"
        )
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


def metric_name(metric: Metric, folder: Path) -> str | None:
    """A name, "file.py:function", or a function, which goes into the run folder."""
    if callable(metric):
        name = str(getattr(metric, "__name__", type(metric).__name__)).replace(":", ".")
        return f"{_pickle(metric, folder / 'input' / 'metric.pkl')}:{name}"
    if metric is not None and not isinstance(metric, str):
        raise BadInput(f"{metric!r} is no metric", "give a name, 'file.py:function', or f(outputs, targets) -> float")
    return _absolute_reference(metric) if metric and ":" in metric else metric


def sampler_name(sampler: str) -> str:
    """A registered sampler's name; told before anything is loaded."""
    known = registry.modules("sampler")
    if sampler not in known:
        raise BadInput(f"there is no sampler called {sampler!r}", f"known: {', '.join(known)}")
    return sampler


def technique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Registered techniques' names; told before anything is loaded."""
    known = registry.modules("technique")
    if missing := [name for name in names if name not in known]:
        raise BadInput(f"there is no technique called {missing[0]!r}", f"known: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def target_name(target: str) -> str:
    return str(Path(target).absolute()) if target.endswith(".toml") else target


def place(target: str, remote: str | None, python: str | None) -> tuple[str, Remote | None]:
    """The target's name, and the machine that has it; None: this one.

    "ssh://user@host:port/t4?python=/opt/venv/bin/python" says all in one; else `remote` is "user@host:port".
    """
    if target.startswith("ssh://"):
        if remote is not None:
            raise BadInput("two remote machines were named", "use --target ssh://HOST/NAME, or --remote HOST")
        url = urlsplit(target)
        remote, target, asked = url.netloc, url.path.lstrip("/"), parse_qs(url.query, keep_blank_values=True)
        if not target:
            raise BadInput(f"ssh://{remote} names no target", f"write it as ssh://{remote}/t4")
        if unknown := [name for name in asked if name != "python"] or url.fragment:
            raise BadInput(f"{unknown} is not known in ssh://{remote}/{target}", "only ?python=PATH may follow")
        python = asked["python"][-1] if "python" in asked else python
    if remote is None:
        if python is not None:
            raise BadInput("a remote Python was named, but no machine", "name it with --remote HOST")
        return target_name(target), None
    found = _HOST.fullmatch(remote)
    if found is None or not 0 < int(found["port"] or 22) < 65536:  # never one that ssh would read as an option
        raise BadInput(f"{remote!r} is not a machine that ssh could reach", "write it as host, user@host or host:port")
    python = python or "python3"
    if python.startswith("-") or not python.isprintable():
        raise BadInput(f"{python!r} is not a program", "give the path of a Python 3.11 or later on the remote machine")
    port = int(found["port"]) if found["port"] else None
    return target_name(target), Remote(host=found["host"], port=port, python=python)


def out_folder(out: str | Path | None, source: ModelSource, data: Any, suffix: str = "") -> Path:
    if out is not None:
        return Path(out).absolute()
    found = default_out(source.path, source.factory, data if isinstance(data, str) else None)
    return found.with_name(found.name + suffix).absolute()


def handed_over(source: ModelSource, model: Any, folder: Path) -> ModelSource:
    """The source, with an object in memory now in a file of the run folder."""
    if not source.cloudpickled:
        return source
    return ModelSource(path=str(_pickle(model, folder / "input" / "model.pkl")), trust=True, cloudpickled=True)


def data_source(data: Any, train: Any, selection: Any, test: Any, folder: Path) -> DataSource:
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
        with _by_value():
            content = cloudpickle.dumps(value)
    except Exception as error:
        raise BadInput(
            f"the object cannot be sent to a worker: {error}", "save it to a file and give its path"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Within, code of the caller's own modules travels with the objects that are made of it.

    A worker could not import what lies beside the caller's script or in the current folder; and with
    the code in the pickle, a change of code makes another model to the cache.
    """
    import cloudpickle

    main = getattr(sys.modules.get("__main__"), "__file__", None)
    folders = {Path.cwd().resolve(), *([Path(main).resolve().parent] if main else [])}
    modules = [module for name, module in list(sys.modules.items()) if getattr(module, "__name__", "") == name]
    own = [module for module in modules if isinstance(module, ModuleType) and _home(module) in folders]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _home(module: ModuleType) -> Path | None:
    """The folder that a module at the top of its package was imported from; None for all others."""
    name, file = module.__name__, getattr(module, "__file__", None)
    if "." in name or name in ("__main__", "petra_deploy") or not isinstance(file, str):
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent
