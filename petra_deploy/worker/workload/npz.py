"""Read .npz archives and folders of them: numbers only, sizes from the headers before anything is read.

Nothing in them is ever unpickled. Shards are joined in the order of their names.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.sniff import check_archive, regular_size
from petra_deploy.worker.workload.table import Array, Table, from_arrays, joined, most_bytes

_RATIO = 1100  # deflate's own limit: data may well be mostly zeros
_AGAIN = "write it again with numpy.savez"


def read(path: Path, input_names: Sequence[str], where: str = "") -> Table:
    """The table in one archive. Raises Problem("input")."""
    where = where or path.name
    return from_arrays(_arrays(path, most_bytes()), where, input_names)


def shards(folder: Path, input_names: Sequence[str]) -> Table:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise Problem("input", f"the folder {folder} has no .npz files", "give one .npz file, or a folder of them")
    left = most_bytes()
    tables = []
    for file in files:
        arrays = _arrays(file, left)
        left -= sum(values.nbytes for values in arrays.values())
        tables.append(from_arrays(arrays, file.name, input_names))
    return joined(tables, folder.name)


def _arrays(path: Path, most: int) -> dict[str, Array]:
    size = regular_size(path, "the data file")
    if size == 0:
        raise Problem("input", f"{path.name} is empty", _AGAIN)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        with open(path, "rb") as file:
            npy_file = file.read(6) == b"\x93NUMPY"
        if npy_file:
            raise Problem(
                "input", f"{path.name} is one array without a name", "store it with numpy.savez(file, NAME=array)"
            ) from None
        raise Problem("input", f"{path.name} is not an npz archive, or is cut short", _AGAIN) from None
    with archive:
        check_archive(path, archive, ratio=_RATIO)
        arrays = {}
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                raise Problem("input", f"{path.name} holds {entry.filename!r}, which is no array", _AGAIN)
            name = entry.filename.removesuffix(".npy")
            try:
                with archive.open(entry) as file:
                    shape, dtype = _header(file, path, name)
                count = math.prod(shape) * dtype.itemsize
                if count > entry.file_size:
                    raise Problem("input", f"the array {name!r} in {path.name} is cut short", _AGAIN)
                most -= count
                if most < 0:
                    hint = "give fewer rows, or smaller types"
                    raise Problem("input", f"{path.name} holds more data than fits in this machine's memory", hint)
                with archive.open(entry) as file:
                    arrays[name] = npy.read_array(file, allow_pickle=False)
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, SyntaxError) as error:
                raise Problem(
                    "input", f"the array {name!r} in {path.name} is damaged: {str(error)[:120]}", _AGAIN
                ) from None
    return arrays


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Problem("input", f"the array {name!r} in {path.name} has an unknown version", _AGAIN)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise Problem(
            "input",
            f"the array {name!r} in {path.name} holds Python objects, which would run code when opened",
            "store numbers: convert it with numpy.asarray(..., dtype=numpy.float32) before saving",
        )
    if any(n < 0 for n in shape):
        raise Problem("input", f"the array {name!r} in {path.name} has a negative size", _AGAIN)
    return shape, dtype
