"""Training rows as tensors: the inputs, and what the outputs should be, batch by batch.

    rows = Rows.of(tools.train, names=("image",), teacher=tools.teacher_outputs())
    batch = rows.take(np.arange(32))
    batch.inputs, batch.teacher, batch.target

Rows are numpy arrays, perhaps memory-mapped and larger than memory: a batch is copied out when its
turn comes, never the whole split. But a GPU takes the split once where it fits: a copy to it waits for all
that it was given before, and steps of small networks are done before the next is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature

Array = NDArray[Any]


_SHARE = 0.25  # of a GPU's free memory that a split may take


@dataclass(frozen=True)
class Batch:
    inputs: tuple[Tensor, ...]  # in the signature's order
    teacher: tuple[Tensor, ...]  # the original's outputs on these rows, in its order
    target: Tensor | None

    def to(self, device: str, *, images_last: bool = False) -> "Batch":
        """On that device; four-dimensional inputs with their channels last, if asked."""
        inputs = tuple(
            t.to(device, memory_format=torch.channels_last) if images_last and t.ndim == 4 else t.to(device)
            for t in self.inputs
        )
        target = None if self.target is None else self.target.to(device)
        return Batch(inputs, tuple(t.to(device) for t in self.teacher), target)

    def take(self, index: Tensor) -> "Batch":
        """These rows, in this order; `index` is on the batch's own device."""
        target = None if self.target is None else self.target[index]
        return Batch(tuple(t[index] for t in self.inputs), tuple(t[index] for t in self.teacher), target)


@dataclass(frozen=True)
class Rows:
    inputs: tuple[Array, ...]  # each (rows, ...)
    teacher: tuple[Array, ...]  # each (rows, ...)
    target: Array | None = None

    @classmethod
    def of(cls, samples: Samples, names: Sequence[str], teacher: Sequence[Array]) -> "Rows":
        """`names` gives the inputs' order. Raises ValueError where the teacher has other rows."""
        for output in teacher:
            if len(output) != len(samples):
                raise ValueError(f"the original's outputs have {len(output)} rows, the training data {len(samples)}")
        return cls(tuple(samples.inputs[name] for name in names), tuple(teacher), samples.target)

    def __len__(self) -> int:
        return len(self.inputs[0])

    def only(self, index: Array) -> "Rows":
        """These rows alone, copied."""
        target = None if self.target is None else self.target[index]
        return Rows(tuple(v[index] for v in self.inputs), tuple(v[index] for v in self.teacher), target)

    def take(self, index: Array) -> Batch:
        """These rows, in this order, as tensors on the CPU."""
        return Batch(
            tuple(_tensor(values, index) for values in self.inputs),
            tuple(_tensor(values, index) for values in self.teacher),
            None if self.target is None else _tensor(self.target, index),
        )


def taking(rows: Rows, device: str) -> Callable[[Array], Batch]:
    """What takes rows by their numbers: on `device` already, where it is a GPU that holds them all, else on the CPU."""
    if not _fits(rows, device):
        return rows.take
    held = rows.take(np.arange(len(rows))).to(device)
    return lambda index: held.take(torch.from_numpy(index).to(device, non_blocking=True))


def _fits(rows: Rows, device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    arrays = (*rows.inputs, *rows.teacher, *([] if rows.target is None else [rows.target]))
    free, _ = torch.cuda.mem_get_info(device)
    return sum(values.nbytes for values in arrays) <= _SHARE * free


def batch_size(signature: Signature, wanted: int) -> int:
    """`wanted`, or the one size that the model takes where its batch dimension is fixed."""
    return signature.fixed_batch or wanted


def _tensor(values: Array, index: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values[index]))
