"""More rows of training data: mixtures of two rows, which the original answers.

    more = mixed(rows, lambda inputs: answers(teacher, inputs, size=64), copies=4, seed=7)  # 4 times as many rows

Where rows are few, a small model soon knows the original's answers on them by heart; on mixtures it
meets others. A mixture is l x + (1 - l) y, with l uniform in [0, 1] and the same for all inputs of a
row: mixup, Zhang et al. (arXiv 1710.09412); the answer is the original's own to the mixture, not a
mixture of answers: Beyer et al. (arXiv 2106.05237). The original answers once, before the training: that
costs `copies` of its passes over the rows, once a run. Inputs must be of floating point; there are no labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from petra_deploy.worker.training.samples import Rows

_BYTES = 1 << 30  # of mixtures, at most
Arrays = Sequence[NDArray[np.floating]]


def mixed(rows: Rows, ask: Callable[[Arrays], Sequence[NDArray[np.generic]]], *, copies: int, seed: int) -> Rows:
    """Fewer copies where they would not fit into a gibibyte. `ask` gives the original's outputs for the mixtures.

    Raises ValueError for inputs that cannot be mixed.
    """
    if any(not np.issubdtype(values.dtype, np.floating) for values in rows.inputs):
        raise ValueError("rows of whole numbers cannot be mixed (augment must be 0)")
    bytes_a_copy = sum(values.nbytes for values in (*rows.inputs, *rows.teacher))
    generator = np.random.default_rng(seed)
    first = np.concatenate(
        [generator.permutation(len(rows)) for _ in range(max(1, min(copies, _BYTES // bytes_a_copy)))]
    )
    second = generator.permutation(first)
    share = generator.random(len(first))
    inputs = tuple(_mixtures(values, first, second, share) for values in rows.inputs)
    return Rows(inputs, tuple(ask(inputs)))


def answers(teacher: nn.Module, inputs: Arrays, *, size: int, device: str = "cpu") -> list[NDArray[np.generic]]:
    """The outputs of `teacher` for all rows, asked in batches of `size`."""
    teacher = teacher.to(device).eval()
    parts = []
    count = len(inputs[0])
    with torch.no_grad():
        for start in range(0, count, size):
            chosen = np.arange(start, start + size) % count  # the last batch is filled up: some models take no other
            batch = [torch.from_numpy(values[chosen]).to(device) for values in inputs]
            parts.append([output.cpu().numpy() for output in teacher(*batch)])
    return [np.concatenate(each)[:count] for each in zip(*parts, strict=True)]


def _mixtures(values: NDArray[np.floating], first: NDArray[np.int64], second: NDArray[np.int64],
              share: NDArray[np.float64]) -> NDArray[np.floating]:  # fmt: skip
    weight = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(weight * values[first] + (1 - weight) * values[second])
