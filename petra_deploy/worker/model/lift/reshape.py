"""How the sizes that a Reshape writes follow from the sizes that it reads.

Exporters write the channels of one network into its Reshapes: (rows, 64, 2, 2) -> (rows, 256). A
network with fewer channels needs (rows, 4 * channels). Input and output dimensions are aligned by
their products; a size that is one input dimension, or several merged, or the last of those that one
is split into, is computed from the input from then on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """The product of these input sizes, over `parts`; of none: `number`."""

    axes: tuple[int, ...]
    parts: int = 1
    number: int = 1

    def __call__(self, shape: Sequence[Any]) -> Any:
        whole = math.prod((shape[axis] for axis in self.axes), start=self.number)
        return whole if self.parts == 1 else whole // self.parts


def plan(befores: Sequence[Shape], afters: Sequence[Shape], target: Sequence[Any]) -> tuple[Size | None, ...] | None:
    """For each size of the output: how to compute it; None for what the target says anyway.

    `befores` and `afters` are the shapes seen in several runs; `target` is what the node was given,
    with None for sizes that differ from run to run. None as a whole: the shapes do not align.
    """
    aligned = [align(before, after) for before, after in zip(befores, afters, strict=True)]
    first = aligned[0]
    if first is None or any(other != first for other in aligned):
        return None
    found = [Size((), number=size) if isinstance(size, int) and size > 0 else None for size in target]
    for read, written in first:
        constant = [isinstance(target[axis], int) and target[axis] > 0 for axis in written]
        if len(written) == 1 and constant[0] and read:
            found[written[0]] = Size(read)
        elif len(read) == 1 and len(written) > 1 and all(constant):
            found[written[-1]] = Size(read, math.prod(target[axis] for axis in written[:-1]))
    return tuple(found) if any(found) else None


def align(before: Shape, after: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """The finest groups of neighbouring dimensions with equal products, as (axes read, axes written)."""
    groups = []
    i = j = 0
    while i < len(before) and j < len(after):
        start, begin = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right, j = right * after[j], j + 1
            else:
                return None
        groups.append((tuple(range(start, i)), tuple(range(begin, j))))
    if any(size != 1 for size in (*before[i:], *after[j:])) or 0 in before:
        return None
    if not groups:
        return None
    read, written = groups[-1]
    groups[-1] = ((*read, *range(i, len(before))), (*written, *range(j, len(after))))
    return groups
