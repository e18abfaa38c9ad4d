"""Divide rows into train, selection and test: 60/20/20, the same for the same seed.

    parts, notes = divide(table, seed=0)

Labels with few classes are divided class by class (stratified). What the user brought as splits
is kept; what is missing is taken from what is there, never from the test rows where others exist.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.data import Brought, duplicates
from petra_deploy.worker.workload.table import Table

FEWEST = 30
_MOST_CALIBRATION = 256
_MOST_CLASSES = 100
Rows = NDArray[np.int64]


def complete(brought: Brought, seed: int) -> tuple[dict[str, Table], tuple[str, ...]]:
    """All of selection, test and calibration, and train where there are rows for it; and notes.

    Raises Problem("input") where there are too few rows.
    """
    parts, notes = dict(brought.parts), list(brought.notes)
    if brought.whole is not None and not {"train", "selection", "test"} & set(parts):
        cut = divide(brought.whole, (("train", 0.6), ("selection", 0.2), ("test", 0.2)), seed)
        parts |= cut
        notes.append("the rows were split into " + ", ".join(f"{len(t)} {n}" for n, t in cut.items()))
    elif not {"train", "selection", "test"} & set(parts):
        raise Problem("input", "the data has only calibration rows", "give selection and test rows too, or one `data`")
    else:
        _fill(parts, notes, seed)
    if "calibration" not in parts:
        source = "train" if "train" in parts else "selection"
        parts["calibration"] = sample(parts[source], _MOST_CALIBRATION, seed)
        if source == "selection":
            notes.append("calibration rows were taken from the selection split, since there is no train split")
    if "train" not in parts:
        notes.append("there are no train rows, so no recovery training")
    shared = duplicates(parts["test"], [parts[name] for name in ("train", "selection") if name in parts])
    if shared:
        notes.append(f"warning: {shared} test rows are also in train or selection, so the test figure flatters")
    return {name: parts[name] for name in ("train", "calibration", "selection", "test") if name in parts}, tuple(notes)


def _fill(parts: dict[str, Table], notes: list[str], seed: int) -> None:
    """Take what is missing of selection and test from another split, in place."""
    if "selection" not in parts and "test" not in parts:
        parts |= divide(parts["train"], (("train", 0.6), ("selection", 0.2), ("test", 0.2)), seed)
        notes.append("selection and test rows, a fifth each, were taken out of the train rows")
    elif "selection" not in parts and "train" in parts:
        parts |= divide(parts["train"], (("train", 0.8), ("selection", 0.2)), seed)
        notes.append(f"{len(parts['selection'])} selection rows were taken out of the train rows")
    elif "selection" not in parts:
        parts |= divide(parts["test"], (("selection", 0.5), ("test", 0.5)), seed)
        notes.append("only test rows were given: half of them are used for the selection")
    elif "test" not in parts:
        parts |= divide(parts["selection"], (("selection", 0.5), ("test", 0.5)), seed)
        notes.append("no test rows were given: half of the selection rows are kept for the test")


def divide(table: Table, shares: tuple[tuple[str, float], ...], seed: int) -> dict[str, Table]:
    """The rows of a table in random order, cut by `shares` (which sum to 1)."""
    if len(table) < FEWEST:
        raise Problem(
            "input",
            f"{table.where} has {len(table)} rows, too few to split",
            f"give at least {FEWEST} rows, or the splits apart with --train, --selection and --test",
        )
    generator = np.random.default_rng(seed)
    chosen: dict[str, list[Rows]] = {name: [] for name, _ in shares}
    carry = dict.fromkeys(chosen, 0.0)  # what rounding owes each part, so that small classes even out
    for rows in _strata(table):
        shuffled = generator.permutation(rows)
        counts = _counts(len(rows), dict(shares), carry)
        start = 0
        for name, count in counts.items():
            chosen[name].append(shuffled[start : start + count])
            start += count
    return {name: table.take(np.sort(np.concatenate(rows))) for name, rows in chosen.items()}


def sample(table: Table, most: int, seed: int) -> Table:
    """Up to `most` rows of a table, drawn without replacement."""
    if len(table) <= most:
        return table
    return table.take(np.sort(np.random.default_rng(seed).choice(len(table), most, replace=False)))


def _strata(table: Table) -> list[Rows]:
    """Rows by class where the labels are whole numbers of few classes, else all rows."""
    rows = np.arange(len(table))
    labels = table.target
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub":
        return [rows]
    classes = np.unique(labels)
    if len(classes) > min(_MOST_CLASSES, len(table) // 5):
        return [rows]
    return [rows[labels == value] for value in classes]


def _counts(total: int, shares: Mapping[str, float], carry: dict[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total`, by `shares` and by what earlier rounding owes."""
    wanted = {name: share * total + carry[name] for name, share in shares.items()}
    counts = {name: max(0, int(np.floor(want))) for name, want in wanted.items()}
    for name in sorted(wanted, key=lambda n: wanted[n] - counts[n], reverse=True):
        if sum(counts.values()) < total:
            counts[name] += 1
    largest = max(counts, key=lambda n: counts[n])
    counts[largest] += total - sum(counts.values())
    for name in counts:
        carry[name] = wanted[name] - counts[name]
    return counts
