"""Read what `--data` (or `--train/--selection/--test`) names, whatever it is.

    brought = read(DataSource(path="data.npz"), input_names=("ids", "mask"))

An .npz file or a folder of them is one table, which `splits.py` divides; a folder or a workload.py
may also bring the splits apart. A workload.py has functions (or a class with methods, or a dict
`workload`) called model, data or train / calibration / selection / test, and metric. Naming it is
trust in it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from petra_deploy.core import metrics
from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import DataSource
from petra_deploy.worker.workload import npz
from petra_deploy.worker.workload.factory import import_file, required
from petra_deploy.worker.workload.objects import table_of
from petra_deploy.worker.workload.table import Table, joined
from petra_deploy.worker.workload.words import one_line

PARTS = ("train", "calibration", "selection", "test")
_SYNONYMS = {"val": "selection", "valid": "selection", "validation": "selection", "dev": "selection"}
_HINT = "give an .npz file, a folder of .npz files, or a workload.py"


@dataclass(frozen=True)
class Brought:
    """The tables as the user cut them: one in `whole`, or some of PARTS."""

    whole: Table | None = None
    parts: dict[str, Table] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def tables(self) -> tuple[Table, ...]:
        return (*self.parts.values(), *((self.whole,) if self.whole else ()))

    def example(self) -> Table | None:
        return next(iter(self.tables()), None)


@dataclass(frozen=True)
class Script:
    """What a workload.py offers: attributes by name, and where a later process finds them.

    `holders` are the file itself, and the class, object or dict in it that brings the data, with the
    prefix of its names ("Workload."); the first that has a name is the one asked.
    """

    path: Path
    holders: tuple[tuple[Any, str], ...]

    def has(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        return self._find(name)[0]

    def spec(self, name: str) -> str:
        return f"{self.path}:{self._find(name)[1]}{name}"

    def is_method(self, name: str) -> bool:
        return bool(self._find(name)[1])

    def _find(self, name: str) -> tuple[Any, str]:
        found = ((_attribute(holder, name), prefix) for holder, prefix in self.holders)
        return next((pair for pair in found if pair[0] is not None), (None, ""))


def is_script(source: DataSource) -> bool:
    return source.path is not None and not source.cloudpickled and source.path.endswith(".py")


def open_script(path: Path) -> Script:
    """Run a workload.py and find what it offers. Raises Problem("input")."""
    module = import_file(path.absolute(), "--data")
    own = {  # `from torch.utils import data` and the mark `metric` are nothing that the file offers
        name: value
        for name, value in vars(module).items()
        if not isinstance(value, ModuleType) and value is not metrics.metric
    }
    holders: list[tuple[Any, str]] = [(own, "")]
    tables = (*PARTS, *_SYNONYMS, "data")
    if not any(name in own for name in tables):
        holders += _inside(module, own, (*tables, "model"), path)
    if not any(_attribute(holder, name) is not None for holder, _ in holders for name in (*tables, "model")):
        raise Problem(
            "input",
            f"{path.name} defines none of {', '.join((*PARTS, 'data', 'model'))}",
            "define functions called train, selection and test, each returning (inputs, target) or batches of them",
        )
    return Script(path.absolute(), tuple(holders))


def _inside(module: ModuleType, own: Mapping[str, Any], offered: Sequence[str], path: Path) -> list[tuple[Any, str]]:
    """The object, class or dict called `workload`, else the first class that offers something."""
    for name in ("workload", "Workload"):
        if name in own:
            return [(_instance(own[name], path), f"{name}.")]
    for name, value in own.items():
        mine = isinstance(value, type) and value.__module__ == module.__name__
        if mine and not issubclass(value, torch.nn.Module) and any(hasattr(value, n) for n in offered):
            return [(_instance(value, path), f"{name}.")]
    return []


def _attribute(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def read(source: DataSource, input_names: Sequence[str], script: Script | None = None) -> Brought:
    """All tables that the source names, checked each by itself. Raises Problem("input")."""
    apart = {name: value for name in ("train", "selection", "test") if (value := getattr(source, name))}
    if source.path is not None and apart:
        raise Problem("input", "--data and --train/--selection/--test are given together", "give one or the other")
    if apart:
        return Brought(parts={name: _one(Path(value), input_names, name) for name, value in apart.items()})
    if source.path is None:
        return Brought()
    path = Path(source.path)
    if source.cloudpickled:
        return _of_object(_unpickle(path), "data", input_names)
    if script is not None:
        return _of_script(script, input_names)
    if path.is_dir():
        return _of_folder(path, input_names)
    return Brought(whole=_one(path, input_names, ""))


def _one(path: Path, input_names: Sequence[str], part: str) -> Table:
    if path.is_dir():
        return npz.shards(path, input_names)
    if path.suffix == ".py":
        script = open_script(path)
        brought = _of_script(script, input_names)
        table = brought.parts.get(part) or brought.whole or next(iter(brought.parts.values()), None)
        if table is None:
            raise Problem(
                "input", f"{path.name} gives no {part or 'data'}", f"define a function called {part or 'data'}"
            )
        return table
    return npz.read(path, input_names)


def _of_folder(folder: Path, input_names: Sequence[str]) -> Brought:
    """Shards; or, where the folder holds `train.npz`, `test/` and the like, those splits."""
    parts: dict[str, Table] = {}
    for entry in sorted(folder.iterdir()):
        name = _SYNONYMS.get(entry.stem, entry.stem)
        if name in PARTS and (entry.suffix == ".npz" or (entry.is_dir() and any(entry.glob("*.npz")))):
            if name in parts:
                raise Problem("input", f"{folder} holds {name} twice", "keep one of them")
            parts[name] = npz.shards(entry, input_names) if entry.is_dir() else npz.read(entry, input_names)
    if len(parts) > 1:
        return Brought(parts=parts)
    return Brought(whole=npz.shards(folder, input_names))


def _of_script(script: Script, input_names: Sequence[str]) -> Brought:
    found: dict[str, Table] = {}
    for name in (*PARTS, *_SYNONYMS):
        if script.has(name) and _SYNONYMS.get(name, name) not in found:
            where = f"{name} of {script.path.name}"
            found[_SYNONYMS.get(name, name)] = table_of(script.get(name), where, input_names)
    whole = table_of(script.get("data"), f"data of {script.path.name}", input_names) if script.has("data") else None
    if whole and any(name in found for name in ("train", "selection", "test")):
        return Brought(parts=found, notes=(f"`data` of {script.path.name} was not used: it has splits of its own",))
    return Brought(whole=whole, parts=found)


def _of_object(value: Any, where: str, input_names: Sequence[str]) -> Brought:
    """An object handed to the Python API: a dict of splits, else one table."""
    if isinstance(value, Mapping):
        keys = {str(key): _SYNONYMS.get(str(key), str(key)) for key in value}
        if keys and set(keys.values()) <= set(PARTS) and not set(keys) & set(input_names):
            return Brought(parts={name: table_of(value[key], key, input_names) for key, name in keys.items()})
    return Brought(whole=table_of(value, where, input_names))


def _unpickle(path: Path) -> Any:
    import cloudpickle

    try:
        with open(path, "rb") as file:
            return cloudpickle.load(file)
    except (Exception, SystemExit) as error:
        raise Problem(
            "input", f"the data could not be sent to a worker: {one_line(error)}", "give numpy arrays"
        ) from error


def _instance(value: Any, path: Path) -> Any:
    if not isinstance(value, type):
        return value
    if needed := required(value):
        raise Problem("input", f"the class {value.__name__} in {path.name} needs the arguments {', '.join(needed)}")
    try:
        return value()
    except (Exception, SystemExit) as error:
        raise Problem("input", f"{value.__name__} in {path.name} raised {one_line(error, path.absolute())}") from error


def with_names(brought: Brought, names: Sequence[str]) -> Brought:
    """The same tables, arrays that came without names called `names`, in order."""

    def renamed(table: Table) -> Table:
        if table.named:
            return table
        if len(table.inputs) != len(names):
            raise Problem(
                "input",
                f"{table.where} gives {len(table.inputs)} inputs, but the model takes {len(names)}: {', '.join(names)}",
                "give one array for each, in that order, or a dict of arrays by name",
            )
        return replace(table, inputs=dict(zip(names, table.inputs.values(), strict=True)))

    whole = renamed(brought.whole) if brought.whole else None
    return replace(brought, whole=whole, parts={name: renamed(table) for name, table in brought.parts.items()})


def duplicates(test: Table, others: Sequence[Table]) -> int:
    """How many rows of the test split are also, to the bit, in the others."""
    with contextlib.suppress(Problem):
        seen = {row for table in others for row in _row_bytes(table)}
        return sum(row in seen for row in _row_bytes(test))
    return 0


def _row_bytes(table: Table) -> list[int]:
    arrays = list(joined([table], table.where).inputs.values())
    return [hash(b"".join(values[row].tobytes() for values in arrays)) for row in range(min(len(table), 50_000))]
