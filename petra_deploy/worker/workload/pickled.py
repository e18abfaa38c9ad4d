"""Open a whole pickled `nn.Module`: plain torch.nn layers without asking, anything else by trust.

Without trust nothing of the file runs (`recorded.py`, `rebuild.py`). With it the file is unpickled
as it is, and the classes it names are looked for beside the model file, in the folders above it,
and in the current one; a class pickled from a script (`__main__.Net`) in the one file beside the
model that defines it.
"""

import importlib
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import pickles
from petra_deploy.worker.workload.factory import defines, import_file, search
from petra_deploy.worker.workload.layers import KNOWN
from petra_deploy.worker.workload.rebuild import rebuild
from petra_deploy.worker.workload.recorded import Recorded, read, refusal
from petra_deploy.worker.workload.sniff import Sniffed
from petra_deploy.worker.workload.words import one_line

SAFE_WAY = (
    "save its weights with torch.save(model.state_dict(), ...) and give the architecture as --model file.py:function; "
    "or, if you trust whoever made this file, add --trust"
)
T = TypeVar("T")
_WRAPPERS = ("model", "ema", "net", "network", "module")


def is_plain(sniffed: Sniffed) -> bool:
    """Whether the pickle names nothing but torch.nn layers and data."""
    return sniffed.scan is not None and sniffed.scan.protocol <= 3 and not pickles.foreign(sniffed.scan.globals, KNOWN)


def open_plain(path: Path, sniffed: Sniffed) -> torch.nn.Module:
    """Fresh layers as the pickle describes them. Raises Problem where it holds anything else."""
    if sniffed.scan is None:
        raise Problem("input", f"{path.name} is no pickle")
    if not is_plain(sniffed):
        raise Problem("input", refusal(path.name, sniffed.scan, "its protocol is too new to read as data"), SAFE_WAY)
    data = read(path, sniffed.scan, SAFE_WAY)
    found = _module_in(data, Recorded)
    if found is None:
        raise Problem("input", f"{path.name} holds a {type(data).__name__}, not a module", SAFE_WAY)
    return rebuild(found, path.name)


def open_trusted(path: Path, sniffed: Sniffed, folder: Path) -> torch.nn.Module:
    """Unpickle a file that the user vouches for; `folder` is the one it came from."""
    names = sniffed.scan.globals if sniffed.scan else ()
    _search_for(names, folder)
    helper: Any = SimpleNamespace(
        Unpickler=_unpickler(folder),
        load=pickle.load, loads=pickle.loads, dump=pickle.dump, dumps=pickle.dumps, __name__="pickle",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if sniffed.kind == "pickle":
                with open(path, "rb") as file:
                    data = _unpickler(folder)(file).load()
            else:
                data = torch.load(path, map_location="cpu", weights_only=False, pickle_module=helper)
    except ModuleNotFoundError as error:
        top = str(error.name).split(".", maxsplit=1)[0]
        raise Problem(
            "input",
            f"{path.name} needs the Python module {error.name}, which is neither installed nor in {folder}",
            f"put {top}.py beside the model, or give a state_dict with --model file.py:function",
        ) from None
    except (Exception, SystemExit) as error:
        if isinstance(error, Problem):
            raise
        raise Problem(
            "input", f"opening {path.name} raised {one_line(error)}", "check that it fits the code beside it"
        ) from error
    found = _module_in(data, torch.nn.Module)
    if found is None:
        kind = type(data).__name__
        hint = "give the architecture as --model file.py:function" if isinstance(data, dict) else ""
        raise Problem("input", f"{path.name} holds a {kind}, not a module", hint)
    return found


def open_cloudpickled(path: Path) -> torch.nn.Module:
    """A module handed to the Python API: the user's own process wrote this file just now."""
    import cloudpickle

    try:
        with open(path, "rb") as file:
            module = cloudpickle.load(file)
    except (Exception, SystemExit) as error:
        hint = "define the model's class in your script or in an installed package"
        raise Problem("input", f"the model could not be sent to a worker: {one_line(error)}", hint) from error
    if not isinstance(module, torch.nn.Module):
        raise Problem("input", f"the model is a {type(module).__name__}, not a torch.nn.Module")
    return module


def _unpickler(folder: Path) -> type[pickle.Unpickler]:
    """A class, since torch derives its own from it."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _from_script(folder, name) if module == "__main__" else super().find_class(module, name)

    return Unpickler


def _from_script(folder: Path, name: str) -> Any:
    """`name` of the only Python file in `folder` that defines it."""
    top = name.split(".", maxsplit=1)[0]
    files = [file for file in sorted(folder.glob("*.py")) if defines(file, top)]
    if len(files) != 1:
        found = "no Python file" if not files else " and ".join(file.name for file in files[:3])
        does = "defines" if len(files) < 2 else "each define"
        raise Problem(
            "input",
            f"the model's class {name} was pickled from a script, and {found} beside the model {does} it",
            f"put the one file that defines {top} beside the model, or give a state_dict with --model file.py:{top}",
        )
    value: Any = import_file(files[0], "--trust")
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _search_for(names: tuple[str, ...], folder: Path) -> None:
    """Put on the search path the folders that hold the modules which `names` come from."""
    importlib.invalidate_caches()
    for module in {name.rpartition(".")[0] for name in names}:
        top = module.split(".", maxsplit=1)[0]
        if top in ("", "__main__", "torch", "collections", "builtins") or top in sys.modules:
            continue
        for place in [folder, *list(folder.parents)[:3], Path.cwd()]:
            if (place / f"{top}.py").is_file() or (place / top).is_dir():
                search(place)
                break


def _module_in(data: Any, kind: type[T]) -> T | None:
    """The module: the object itself, or under the usual key of a checkpoint."""
    if isinstance(data, kind):
        return data
    if isinstance(data, Mapping):
        return next((data[key] for key in _WRAPPERS if isinstance(data.get(key), kind)), None)
    return None
