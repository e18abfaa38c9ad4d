"""What a model gives, and which dimensions of it follow those of the inputs: found by running it.

signature, notes = observe(inputs, run, feeds)      # feeds(rows) makes inputs of that many rows
"""

from collections.abc import Callable, Sequence

import numpy as np

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import BATCH, Signature, TensorSpec
from petra_deploy.worker.workload.inputs import Run
from petra_deploy.worker.workload.table import Array
from petra_deploy.worker.workload.words import one_line

Feeds = Callable[[int], dict[str, Array]]
Named = list[tuple[str, Array]]


def observe(inputs: Sequence[TensorSpec], run: Run, feeds: Feeds) -> tuple[Signature, tuple[str, ...]]:
    """The signature with its outputs. The first input dimension is BATCH; others may be names.

    Raises Problem where the first output does not have a row for each row of the inputs.
    """
    two, three = _run(run, feeds(2)), _run(run, feeds(3))
    shapes = [list[int | str](value.shape) for _, value in two]
    if [name for name, _ in two] != [name for name, _ in three]:
        raise Problem(
            "unsupported", "the model gives other outputs for 3 rows than for 2", "let it always give the same"
        )
    for shape, (name, a), (_, b) in zip(shapes, two, three, strict=True):
        if a.ndim != b.ndim:
            raise Problem("unsupported", f"the output {name} has other dimensions for 3 rows than for 2")
        for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)):
            if (x, y) == (2, 3):
                shape[i] = BATCH
            elif x != y:
                raise Problem(
                    "unsupported", f"the output {name} is {list(a.shape)} for 2 rows and {list(b.shape)} for 3"
                )
    if not shapes[0] or shapes[0][0] != BATCH:
        raise Problem(
            "unsupported",
            f"the output {two[0][0]} is {list(two[0][1].shape)} for 2 rows: its first dimension is not the rows",
            "let the model take and give rows in the first dimension (batch_first=True)",
        )
    kept, notes = list(inputs), _mixing(run, feeds(2), two[0])
    for name in dict.fromkeys(n for spec in inputs for n in spec.shape[1:] if isinstance(n, str)):
        if not _follow(name, kept, run, feeds(2), two, shapes):
            kept = [_fixed(spec, name, feeds(2)[spec.name]) for spec in kept]
            notes.append(f"the dimension {name} is fixed: the model does not run when it is changed")
    outputs = tuple(
        TensorSpec(name=name, dtype=str(value.dtype), shape=tuple(shape))
        for (name, value), shape in zip(two, shapes, strict=True)
    )
    return Signature(inputs=tuple(kept), outputs=outputs), tuple(notes)


def _mixing(run: Run, feeds: dict[str, Array], before: tuple[str, Array]) -> list[str]:
    """Refuse a model whose rows influence each other: swapped inputs must give swapped outputs."""
    name, value = before
    swapped = run({key: rows[::-1].copy() for key, rows in feeds.items()})[0][1]
    if _close(value, swapped[::-1]):
        return []
    if not _close(value, run(feeds)[0][1]):
        return ["warning: the model gives other outputs each time it runs, so figures have noise of its own"]
    raise Problem(
        "unsupported",
        f"the rows of a batch influence each other in the output {name}, so they cannot be judged one by one",
        "let the first dimension be the rows (batch_first=True for recurrent layers and attention)",
    )


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    finite = a[np.isfinite(a)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3 * scale + 1e-9, equal_nan=True))


def _follow(
    name: str,
    inputs: Sequence[TensorSpec],
    run: Run,
    feeds: dict[str, Array],
    before: Named,
    shapes: list[list[int | str]],
) -> bool:
    """Shrink a dynamic dimension and mark what changes in the outputs with its name."""
    changed = dict(feeds)
    size = other = 0
    for spec in inputs:
        for axis, dimension in enumerate(spec.shape):
            if dimension == name:
                size = changed[spec.name].shape[axis]
                other = size // 2 if size > 3 else size + 1
                changed[spec.name] = np.take(changed[spec.name], np.arange(other) % size, axis=axis)
    try:
        after = run(changed)
    except Exception:  # the model's own shape error
        return False
    if [n for n, _ in after] != [n for n, _ in before]:
        return False
    for shape, (_, a), (_, b) in zip(shapes, before, after, strict=True):
        if a.ndim != b.ndim:
            return False
        for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)):
            if x != y:
                shape[i] = name if (x, y) == (size, other) else f"{name}_{i}"
    return True


def _fixed(spec: TensorSpec, name: str, values: Array) -> TensorSpec:
    shape = tuple(n if want == name else want for want, n in zip(spec.shape, values.shape, strict=True))
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)


def _run(run: Run, feeds: dict[str, Array]) -> Named:
    try:
        return run(feeds)
    except Problem:
        raise
    except Exception as error:  # whatever the user's forward raises
        rows = len(next(iter(feeds.values())))
        raise Problem(
            "input", f"the model raised {one_line(error)} for {rows} rows", "let it take any number of rows"
        ) from error
