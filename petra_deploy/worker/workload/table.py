"""Rows as the user brought them, before names, types and shapes are settled.

`inputs` has the arrays by the user's names; arrays that came without names (a pair `(X, y)`) are
called "#0", "#1" ... until the model's signature names them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem

Array = NDArray[np.generic]
TARGETS = ("target", "labels", "targets", "label", "y")  # the first that is there, and is no input


@dataclass(frozen=True)
class Table:
    inputs: dict[str, Array]  # name -> (rows, ...)
    target: Array | None
    where: str  # what the user calls it: "data.npz", "train of workload.py"

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def named(self) -> bool:
        return not any(name.startswith("#") for name in self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Table":
        inputs = {name: values[rows] for name, values in self.inputs.items()}
        return Table(inputs, None if self.target is None else self.target[rows], self.where)


def from_arrays(arrays: dict[str, Array], where: str, input_names: Sequence[str]) -> Table:
    """Tell the target from the inputs by its name. Raises Problem where rows do not match."""
    if not arrays:
        raise Problem("input", f"{where} holds no arrays", "store the inputs under their names, and `target`")
    found = next((name for name in TARGETS if name in arrays and name not in input_names), None)
    inputs = {name: values for name, values in arrays.items() if name != found}
    if not inputs:
        raise Problem(
            "input", f"{where} holds only {found!r}, no inputs", "store the inputs beside it, under their names"
        )
    return checked(Table(inputs, arrays[found] if found else None, where))


def checked(table: Table) -> Table:
    """The same table, or Problem: no rows, scalars, rows that do not match, or no numbers."""
    every = dict(table.inputs)
    if table.target is not None:
        every["target"] = table.target
    for name, values in every.items():
        shown = _shown(name)
        if values.dtype.kind not in "biuf":
            kind = "text" if values.dtype.kind in "SU" else str(values.dtype)
            hint = "encode text as whole numbers" if kind == "text" else "store numbers: float32 or int64"
            raise Problem("input", f"{shown} in {table.where} holds {kind}, not numbers", hint)
        if values.ndim == 0:
            raise Problem(
                "input", f"{shown} in {table.where} is a single number", "its first dimension must be the rows"
            )
        if len(values) == 0:
            raise Problem("input", f"{shown} in {table.where} is empty", "give at least 30 rows")
    lengths = {name: len(values) for name, values in every.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{_shown(name)} has {n}" for name, n in lengths.items())
        raise Problem("input", f"the arrays of {table.where} differ in rows: {said}", "store as many rows of each")
    return table


def joined(tables: Sequence[Table], where: str) -> Table:
    """All rows in order. Raises Problem where names or shapes differ."""
    first = tables[0]
    for table in tables[1:]:
        if set(table.inputs) != set(first.inputs) or (table.target is None) != (first.target is None):
            raise Problem(
                "input", f"{first.where} and {table.where} hold different arrays", "store the same arrays in each"
            )
    try:
        inputs = {name: np.concatenate([table.inputs[name] for table in tables]) for name in first.inputs}
        target = None if first.target is None else np.concatenate([t.target for t in tables if t.target is not None])
    except ValueError:
        hint = "pad or crop them to one shape"
        raise Problem("input", f"the rows in {where} differ in shape from part to part", hint) from None
    return Table(inputs, target, where)


def most_bytes() -> int:
    """How much data may be held at once: a third of this machine's memory, or of this process's limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            memory = min(memory, limit)
    except (ImportError, ValueError, OSError):
        pass
    return memory // 3


def _shown(name: str) -> str:
    return f"the array {name!r}" if not name.startswith("#") else f"input {int(name[1:]) + 1}"
