"""Make a table fit a signature: names, types and shapes, with everything said that was changed.

    table, notes = fitted(table, inputs)

Types are cast where nothing is lost that a model could notice; anything else is a Problem that
names the array, what it is and what it should be.
"""

from collections.abc import Sequence

import numpy as np

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.workload.table import Array, Table


def fitted(table: Table, inputs: Sequence[TensorSpec]) -> tuple[Table, tuple[str, ...]]:
    """The inputs of the signature, in its order. Raises Problem("input")."""
    arrays: dict[str, Array] = {}
    notes: list[str] = []
    names = [spec.name for spec in inputs]
    given = dict(table.inputs)
    if not set(names) & set(given) and len(names) == len(given) == 1:
        given = {names[0]: next(iter(given.values()))}
    if missing := [name for name in names if name not in given]:
        raise Problem(
            "input",
            f"{table.where} has no array called {missing[0]!r}: it has {', '.join(given)}; "
            f"the model takes {', '.join(names)}",
            "name the arrays as the model's inputs",
        )
    for spec in inputs:
        check_shape(given[spec.name], spec, table.where)
        arrays[spec.name], note = cast(given[spec.name], spec.dtype, spec.name, table.where)
        notes += [note] if note else []
    if extra := [name for name in given if name not in names]:
        notes.append(f"arrays that are no input of the model were left out: {', '.join(extra)}")
    return Table(arrays, table.target, table.where), tuple(notes)


def check_shape(values: Array, spec: TensorSpec, where: str) -> None:
    """Every dimension but the rows must be as the signature says."""
    wanted = spec.shape
    same = values.ndim == len(wanted) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted[1:], values.shape[1:], strict=False)
    )
    if not same:
        hint = "reshape the data"
        if values.ndim == len(wanted) - 1 and 1 in wanted[1:]:
            hint += "; a dimension of size 1 is missing"
        elif values.ndim == len(wanted) == 4 and values.shape[-1] == wanted[1]:
            hint += ": channels must come second, as in array.transpose(0, 3, 1, 2)"
        raise Problem(
            "input",
            f"{spec.name!r} in {where} has the shape {show(values.shape)}; the model takes {show(wanted)}",
            hint,
        )


def cast(values: Array, dtype: str, name: str, where: str) -> tuple[Array, str]:
    """`values` as `dtype`, and a note where that is not what they were. Raises Problem("input")."""
    wanted = np.dtype(dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinite numbers"
        bad = int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum())
        raise Problem(
            "input", f"{name!r} in {where} holds {what}, in {bad} of {len(values)} rows", "clean or drop those rows"
        )
    if values.dtype == wanted:
        return values, ""
    if wanted.kind in "iu" and values.dtype.kind == "f" and not np.array_equal(values, np.trunc(values)):
        raise Problem(
            "input",
            f"{name!r} in {where} is {values.dtype} with fractions; the model takes {dtype}",
            "check which array is which",
        )
    if wanted.kind in "iu" and values.size:
        info = np.iinfo(wanted)
        if float(values.min()) < info.min or float(values.max()) > info.max:
            raise Problem("input", f"{name!r} in {where} holds numbers outside {dtype}", "check which array is which")
    if wanted.kind == "b" and not np.isin(values, (0, 1)).all():
        raise Problem(
            "input", f"{name!r} in {where} holds more than 0 and 1; the model takes bool", "check which array is which"
        )
    made = values.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(made).all():
        raise Problem("input", f"{name!r} in {where} holds numbers too large for {dtype}", "scale the data")
    image = values.dtype == np.uint8 and wanted.kind == "f"
    return made, f"{name} was cast from {values.dtype} to {dtype}" + (", without scaling" if image else "")


def show(shape: Sequence[int | str]) -> str:
    """[rows, 3, 32, 32]: without the number of rows."""
    return "[" + ", ".join(["rows", *map(str, shape[1:])]) + "]"
