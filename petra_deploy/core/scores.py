"""What the shape of a model's outputs says: where the classes are, and whether there are any."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_axis(scores: tuple[int, ...], labels: tuple[int, ...]) -> int | None:
    """By their shapes, the axis of scores that labels have not: the last, or the second where only that fits."""
    axes = (len(scores) - 1, 1) if len(scores) > 1 else ()
    return next((axis for axis in axes if scores[:axis] + scores[axis + 1 :] == labels), None)


def agree_by_class(theirs: NDArray[Any]) -> bool:
    """Whether two models agree on a class, by these outputs of the original, rather than on numbers."""
    return np.issubdtype(theirs.dtype, np.floating) and theirs.ndim in (2, 3) and theirs.shape[-1] > 1
