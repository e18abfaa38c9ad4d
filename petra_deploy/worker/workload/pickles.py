"""Read what a pickle would do without doing it: its opcodes, never its code.

    scan(data, "model.pt")      # Scan(top="dict", globals=("collections.OrderedDict", ...))

A pickle is a program. `pickletools.genops` lists its instructions; from them follow the names of
everything that it would import, and what sort of object it starts with, which for pickles that
Python wrote is the object that it gives. A file made by hand may lie about the latter, so loaders
look again at what they got.
"""

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from petra_deploy.core.errors import Problem

_AGAIN = "save it again with torch.save, or download it again"
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")


@dataclass(frozen=True)
class Scan:
    top: Literal["dict", "object", "other"]
    top_name: str  # the class of the outermost object, where it is one
    globals: tuple[str, ...]  # "module.name" of all that would be imported, in order
    protocol: int


def scan(data: bytes, where: str) -> Scan:
    """Raises Problem("input") where `data` is not a whole pickle."""
    return _scan(io.BytesIO(data), where)


def scan_file(path: Path, which: int) -> Scan:
    """Scan the pickle number `which` of several in a row (torch.save's format before 1.6)."""
    with open(path, "rb") as file:
        for _ in range(which):
            _scan(file, path.name)
        return _scan(file, path.name)


def foreign(names: tuple[str, ...], known: frozenset[str]) -> tuple[str, ...]:
    """Those of `names` that are neither torch's own data types nor in `known`."""
    return tuple(name for name in names if name not in known and not _is_data(name))


def _is_data(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return (
        name in ("collections.OrderedDict", "collections.Counter", "torch.Size", "torch.Tensor", "torch.device",
                 "torch.nn.parameter.Parameter", "builtins.set", "builtins.complex", "builtins.bytearray",
                 "_codecs.encode", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2")
        or (module == "torch._utils" and last.startswith("_rebuild_"))
        or (module in ("torch", "torch.storage") and (last.endswith("Storage") or last in _DTYPES))
    )  # fmt: skip


_DTYPES = frozenset(
    ("float16", "float32", "float64", "bfloat16", "half", "float", "double", "int8", "int16", "int32", "int64", "uint8",
     "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
)  # fmt: skip


def _scan(file: IO[bytes], where: str) -> Scan:
    names: list[str] = []
    first: tuple[str, str] | None = None
    protocol = 0
    try:
        for operation, name in _operations(file):
            if operation == "PROTO":
                protocol = int(name)
                continue
            if name and name not in names:
                names.append(name)
            if first is None and operation not in ("FRAME", "MARK"):
                first = (operation, name)
    except (ValueError, IndexError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise Problem("input", f"{where} is cut short or damaged: {str(error)[:100]}", _AGAIN) from None
    operation, name = first or ("", "")
    top: Literal["dict", "object", "other"] = "other"
    if operation in ("EMPTY_DICT", "DICT") or name in _DICTS:
        top = "dict"
    elif name:
        top = "object"
    return Scan(top, name, tuple(names), protocol)


def _operations(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """(opcode, the name it imports or ""); of STACK_GLOBAL the two strings pushed before it.

    Strings that lead up to the first STACK_GLOBAL are held back, so that it counts as first.
    """
    strings: list[str] = []
    memo: dict[int, str] = {}
    held = True
    for opcode, argument, _ in pickletools.genops(file):
        kind = opcode.name
        if kind == "PROTO":
            yield kind, str(argument)
        elif kind in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            held = False
            yield kind, _modern(module, name)
        elif kind == "STACK_GLOBAL":
            module, name = (["?", "?", *strings])[-2:]
            held = False
            yield kind, _modern(module, name)
        elif "UNICODE" in kind or kind in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
            strings.append(str(argument))
            if not held:
                yield kind, ""
        elif kind in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            if strings:
                memo[len(memo) if argument is None else int(str(argument))] = strings[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            strings.append(memo.get(int(str(argument)), "?"))
        else:
            held = held and kind in ("FRAME", "MARK")
            yield kind, ""


def _modern(module: str, name: str) -> str:
    """The name in Python 3 of what protocol 2 writes as Python 2 knew it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
