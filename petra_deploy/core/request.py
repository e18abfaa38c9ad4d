"""What the user asked for: the contents of run.json, and the words it is written in.

    Request(model=ModelSource(path="model.pt"), data=DataSource(path="data.npz"), budget=Budget(trials=12))

`parse_duration`, `parse_batches` and their like read what people type for `--time` and `--batch`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from petra_deploy.core.data import Data
from petra_deploy.core.errors import BadInput
from petra_deploy.core.outcome import Budget, Goal
from petra_deploy.core.profile import SCENARIOS, ScenarioName
from petra_deploy.core.workload import DataSource, LoadOptions, ModelSource

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAY_CHANGE = ("budget", "device", "certify")  # between a run and its --resume


@dataclass(frozen=True, kw_only=True)
class Remote(Data):
    """A machine that ssh reaches, on which engines are built, run and measured."""

    host: str  # "user@host", "host", or a name of ~/.ssh/config
    port: int | None = None
    python: str = "python3"  # there; it has the packages of the runner (docs/remote.md)

    @property
    def name(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Request(Data):
    """Paths in `model` and `data` are absolute, so that a run resumes from any folder."""

    schema: Literal["petra-deploy/run/1"] = "petra-deploy/run/1"
    model: ModelSource
    data: DataSource = field(default_factory=DataSource)
    load: LoadOptions = field(default_factory=LoadOptions)
    target: str = "cpu"
    runtime: str = ""  # one of the target's, for the whole run; empty: its own, the others for finalists
    require_measured: bool = False  # refuse a target that is not here, rather than predict
    remote: Remote | None = None  # the machine that has the target; None: this one
    certify: bool = False  # compute on which processors the accuracy of what ships holds
    goal: Goal = field(default_factory=Goal)
    budget: Budget = field(default_factory=Budget)
    with_techniques: tuple[str, ...] = ()  # that are off unless asked for
    without_techniques: tuple[str, ...] = ()
    sampler: str = "cma"
    seed: int = 0
    device: str = "auto"


def differences(old: Request, new: Request) -> tuple[str, ...]:
    """What of `new` contradicts `old`, one phrase each; a longer budget, another device or --certify does not.

    Trials of one question cannot be told to another, so a run is resumed only where this is empty.
    """
    found: list[str] = []
    for name in vars(old):
        if name in _MAY_CHANGE:
            continue
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Data) and isinstance(after, Data):
            pairs = [(f"{name}.{key}", value, vars(after)[key]) for key, value in vars(before).items()]
        else:
            pairs = [(name, before, after)]
        found += [f"{label} was {a!r} and is now {b!r}" for label, a, b in pairs if a != b]
    return tuple(found)


def arguments(request: Request) -> dict[str, Any]:
    """`request` as the keyword arguments of `petra_deploy.optimize`: what --resume starts from."""
    return {
        "model": request.model.path,
        "model_factory": request.model.factory,
        "trust": request.model.trust,
        "data": request.data.path,
        "train": request.data.train,
        "selection": request.data.selection,
        "test": request.data.test,
        "inputs": request.load.inputs,
        "metric": request.load.metric,
        "target": request.target,
        "runtime": request.runtime,
        "require_measured": request.require_measured,
        "remote": request.remote.name if request.remote else None,
        "remote_python": request.remote.python if request.remote else None,
        "certify": request.certify,
        "max_drop": request.goal.max_drop,
        "objective": request.goal.objective,
        "batches": request.goal.batches,
        "trials": request.budget.trials,
        "time": request.budget.seconds,
        "with_techniques": request.with_techniques,
        "without_techniques": request.without_techniques,
        "sampler": request.sampler,
        "seed": request.seed,
        "device": request.device,
    }


def parse_duration(text: str | float) -> float:
    """Seconds in "90", "90s", "20m", "1h", "1h30m" (a bare number is seconds).

    Raises BadInput for anything else, and for nothing or less.
    """
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
        rebuilt = "".join(number + unit for number, unit in parts)
        if not parts or rebuilt != re.sub(r"\s", "", text.lower()):
            raise BadInput(f"{text!r} is not a time", "write 90s, 20m or 1h30m")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e8:
        raise BadInput(f"a time of {text} makes no sense", "write 90s, 20m or 1h30m")
    return seconds


def parse_milliseconds(text: str | float) -> float:
    """Milliseconds in "10ms", "0.5s" or "10" (a bare number is milliseconds). Raises BadInput."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|us)?\s*", str(text).lower())
    value = float(match[1]) * {"s": 1e3, "us": 1e-3}.get(match[2], 1.0) if match else 0.0
    if not 0 < value < 1e8:
        raise BadInput(f"{text!r} is not a latency", "write 10ms or 0.5s")
    return value


def parse_scenarios(text: str | Sequence[str]) -> tuple[ScenarioName, ...]:
    """The scenarios in "single-stream,server", or "all". Raises BadInput."""
    names = [name.strip() for name in text.split(",")] if isinstance(text, str) else list(text)
    if names == ["all"]:
        return SCENARIOS
    found = tuple(known for name in names for known in SCENARIOS if known == name)
    if len(found) != len(names) or not names or len(set(names)) != len(names):
        raise BadInput(f"{text!r} is not a list of scenarios", f"choose of {', '.join(SCENARIOS)}; or all")
    return found


def parse_batches(text: str) -> tuple[int, ...]:
    """(1, 16) of "1,16". The first is the batch size that latency means. Raises BadInput."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or any(not 1 <= size <= 65536 for size in sizes) or len(set(sizes)) != len(sizes):
        raise BadInput(f"{text!r} is not a list of batch sizes", "write distinct whole numbers from 1, like 1,16")
    return sizes


def parse_share(text: str | float) -> float:
    """0.05 of "5%" or "0.05". Raises BadInput for anything else, and for a bare number of 1 or more."""
    if isinstance(text, int | float):
        return float(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    if match is None or (not match[2] and float(match[1]) >= 1):
        raise BadInput(f"{text!r} is not a share", "write it like 5%")
    return float(match[1]) / (100 if match[2] else 1)
