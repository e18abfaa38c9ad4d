"""Read a pickle as data: tensors are real, every other object is only written down.

    data = read(path, scan)         # {"conv.weight": tensor, ...} or Recorded("my.Net", {...})

torch's weights-only unpickler does the reading, with a stand-in for each class that it does not
know: a stand-in keeps the class's name and the state, and cannot be called. So no code of the
file runs, nor any of torch.nn on states that a stranger made.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import pickles
from petra_deploy.worker.workload.layers import KNOWN

# What checkpoints often carry beside their weights, made by calls that mean nothing here.
_INERT = frozenset(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
) | frozenset(
    ("numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
     "datetime.datetime", "datetime.timedelta", "datetime.date", "collections.defaultdict", "collections.deque",
     "builtins.list",
     "builtins.dict", "builtins.slice", "builtins.range", "builtins.frozenset", "uuid.UUID", "_codecs.encode")
)  # fmt: skip


class _NotCallable(type):
    def __call__(cls, *_: object, **__: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it calls {getattr(cls, 'name', '?')}")


class Recorded(metaclass=_NotCallable):
    """An object of the pickle: the name of its class and its state, nothing that can run."""

    name = ""
    state: Any = None

    def __new__(cls, *_: object) -> "Recorded":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state)


class _Inert:
    """A stand-in that may be called, with whatever, and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path, scan: pickles.Scan, hint: str) -> Any:
    """The outermost object of a file that torch.save wrote.

    Raises Problem("input", ..., hint) where the pickle does more than describe objects.
    """
    # A stand-in of its own for each name; a tuple (stand-in, name) is torch's own way to say so.
    stands: list[Any] = []
    for name in pickles.foreign(scan.globals, frozenset()):
        if name in _INERT:
            stands.append((type("Inert", (_Inert,), {}), name))
        else:
            stands.append((_NotCallable("Recorded", (Recorded,), {"name": name}), name))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stands):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Problem("input", refusal(path.name, scan, _cause(error)), hint) from None
    except (MemoryError, OSError, EOFError) as error:
        raise Problem("input", f"{path.name} cannot be read: {_cause(error)}", "save or download it again") from None
    except Exception as error:  # whatever torch says of a damaged or hostile file
        raise Problem("input", f"{path.name} cannot be read: {_cause(error)}", hint) from None


def refusal(name: str, scan: pickles.Scan, cause: str = "") -> str:
    """One sentence that says what kind of code is in the file."""
    found = pickles.foreign(scan.globals, KNOWN | _INERT)
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    if shown:
        return f"{name} is a pickle with code of its own ({shown}), which would run when it is opened"
    return f"{name} is a pickle that does more than hold weights: {cause}"


def _cause(error: BaseException) -> str:
    text = str(error)
    if "WeightsUnpickler error:" in text:
        text = text.split("WeightsUnpickler error:", 1)[1]
    return (text.strip().splitlines() or [type(error).__name__])[0][:160]
