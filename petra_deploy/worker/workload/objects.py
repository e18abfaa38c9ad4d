"""Turn what Python code gives (a pair, a dict, a DataLoader, a generator ...) into a table.

    table = table_of((X, y), "train", input_names=())

    one array or tensor                 inputs only
    (inputs, target)                    a pair; inputs may be an array, a tuple of them, or a dict
    {"ids": ..., "target": ...}         arrays by name; scikit-learn's Bunch too
    a torch Dataset                     items are rows
    a DataLoader, any other iterable    items are batches, or rows where their target is one number
    a function                          called without arguments, and its result read the same way

Items are pairs, dicts or arrays as above; of an item with three parts and more the last is the
target.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.factory import required
from petra_deploy.worker.workload.table import Array, Table, checked, from_arrays, most_bytes
from petra_deploy.worker.workload.words import one_line

_MOST_ITEMS = 5_000_000
_HINT = "give arrays, pairs (inputs, target), dicts of arrays, or an iterable of these"


def table_of(value: Any, where: str, input_names: Sequence[str]) -> Table:
    """Raises Problem("input") for what is no data, and for whatever the user's code raises."""
    try:
        return checked(_table(value, where, input_names))
    except Problem:
        raise
    except (Exception, SystemExit) as error:
        raise Problem("input", f"reading {where} raised {one_line(error)}", _HINT) from error


def _table(value: Any, where: str, names: Sequence[str]) -> Table:
    if callable(value) and not isinstance(value, Iterable | Mapping):
        if needed := required(value):
            raise Problem("input", f"{where} needs the arguments {', '.join(needed)}", "let it take none")
        value = value()
    if isinstance(value, Mapping) and "data" in value and "target" in value and "data" not in names:
        value = (value["data"], value["target"])  # scikit-learn's Bunch
    if isinstance(value, Mapping):
        return from_arrays({str(key): array(item, where) for key, item in value.items()}, where, names)
    if _is_array(value):
        return Table({"#0": array(value, where)}, None, where)
    if isinstance(value, tuple) and len(value) == 2 and _is_inputs(value[0]) and _is_column(value[1], value[0]):
        return Table(_inputs(value[0], where), None if value[1] is None else array(value[1], where), where)
    if isinstance(value, Iterable) or hasattr(value, "__getitem__"):
        return _from_items(value, where, names)
    raise Problem("input", f"{where} is a {type(value).__name__}, which is no data", _HINT)


def _from_items(value: Any, where: str, names: Sequence[str]) -> Table:
    parts: list[Table] = []
    rows: bool | None = None
    left = most_bytes()
    for item in itertools.islice(_iterate(value), _MOST_ITEMS):
        inputs, target = _split(item, where, names)
        if rows is None:
            rows = _is_row(value, inputs, target)
        if rows:
            inputs = {name: values[None] for name, values in inputs.items()}
            target = None if target is None else target[None]
        parts.append(Table(inputs, target, where))
        left -= sum(values.nbytes for values in inputs.values())
        if left < 0:
            hint = "let it stop after fewer rows"
            raise Problem("input", f"{where} gives more data than fits in this machine's memory", hint)
    if not parts:
        raise Problem("input", f"{where} gives no rows", "an iterator can be read only once: give a function or a list")
    first = parts[0]
    try:
        joined = {name: np.concatenate([part.inputs[name] for part in parts]) for name in first.inputs}
        targets = [part.target for part in parts if part.target is not None]
        return Table(joined, np.concatenate(targets) if targets else None, where)
    except (ValueError, KeyError):
        hint = "pad or crop all rows to one shape"
        raise Problem("input", f"the rows of {where} differ in shape or in their arrays", hint) from None


def _iterate(value: Any) -> Iterable[Any]:
    """The items; of a map-style Dataset by index, since iterating one may not stop."""
    if isinstance(value, torch.utils.data.Dataset) and not isinstance(value, torch.utils.data.IterableDataset):
        return (value[index] for index in range(len(value)))  # type: ignore[arg-type]
    iterator: Iterable[Any] = iter(value)
    return iterator


def _split(item: Any, where: str, names: Sequence[str]) -> tuple[dict[str, Array], Array | None]:
    if isinstance(item, Mapping):
        arrays = {str(key): array(value, where) for key, value in item.items()}
        found = next((n for n in ("target", "labels", "targets", "label", "y") if n in arrays and n not in names), None)
        return {n: v for n, v in arrays.items() if n != found}, arrays[found] if found else None
    if isinstance(item, tuple | list) and not _is_array(item):
        if len(item) == 1:
            return _inputs(item[0], where), None
        inputs = item[0] if len(item) == 2 else tuple(item[:-1])
        return _inputs(inputs, where), None if item[-1] is None else array(item[-1], where)
    return _inputs(item, where), None


def _is_row(container: Any, inputs: dict[str, Array], target: Array | None) -> bool:
    if isinstance(container, torch.utils.data.DataLoader):
        return container.batch_size is None and container.batch_sampler is None
    if isinstance(container, torch.utils.data.Dataset):
        return True
    first = next(iter(inputs.values()))
    if target is not None:
        return target.ndim == 0 or first.ndim == 0 or len(first) != len(target)
    return first.ndim < 2


def _inputs(value: Any, where: str) -> dict[str, Array]:
    if isinstance(value, Mapping):
        return {str(key): array(item, where) for key, item in value.items()}
    if isinstance(value, tuple | list) and value and all(_is_array(item) for item in value):
        return {f"#{index}": array(item, where) for index, item in enumerate(value)}
    return {"#0": array(value, where)}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) or hasattr(value, "__array__")


def _is_inputs(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(_is_array(item) for item in value)
    return _is_array(value) or (isinstance(value, Mapping) and all(_is_array(item) for item in value.values()))


def _is_column(value: Any, inputs: Any) -> bool:
    """Whether `value` may be the target of `inputs`: None, or as many as there are rows."""
    if value is None:
        return True
    if not _is_array(value) and not (isinstance(value, list) and value and np.isscalar(value[0])):
        return False
    first = next(iter(_inputs(inputs, "").values()))
    return np.ndim(value) > 0 and np.ndim(first) > 0


def array(value: Any, where: str) -> Array:
    """A numpy array of numbers, of a tensor, an array, a DataFrame, a list or a number."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype is torch.bfloat16 else value).numpy())
    try:
        made = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise Problem(
            "input", f"{where} holds rows of different shapes: {one_line(error)}", "pad them to one shape"
        ) from None
    if made.dtype == object:
        raise Problem("input", f"{where} holds Python objects ({type(value).__name__}), not numbers", _HINT)
    return made
