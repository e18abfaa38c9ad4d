"""Rows of data: one array an input, and the target where there is one.

    samples = Samples.open(store.path(split.key))          # memory-mapped
    for feeds, target in samples.batches(32): ...

On disk a split is a folder: `inputs/<name>.npy` (first dimension: rows), `target.npy`, and
`order.json` with the inputs' names in the signature's order. Never pickled.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Samples:
    inputs: dict[str, Array]  # name -> (rows, ...)
    target: Array | None = None  # (rows, ...)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: Array | slice) -> "Samples":
        """These rows only, in this order."""
        inputs = {name: values[rows] for name, values in self.inputs.items()}
        return Samples(inputs, None if self.target is None else self.target[rows])

    def first(self, n: int) -> "Samples":
        return self.take(slice(0, n))

    def batches(self, size: int) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """In order, the last one smaller; arrays are contiguous copies."""
        for start in range(0, len(self), size):
            part = self.take(slice(start, start + size))
            feeds = {name: np.array(values, order="C") for name, values in part.inputs.items()}
            yield feeds, part.target

    def save(self, folder: Path) -> None:
        (folder / "inputs").mkdir(parents=True)
        (folder / "order.json").write_text(json.dumps(list(self.inputs)))
        for index, values in enumerate(self.inputs.values()):  # names may not be file names
            np.save(folder / "inputs" / f"{index}.npy", values, allow_pickle=False)
        if self.target is not None:
            np.save(folder / "target.npy", self.target, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> "Samples":
        names = json.loads((folder / "order.json").read_text())
        read = {
            name: np.load(folder / "inputs" / f"{index}.npy", mmap_mode="r", allow_pickle=False)
            for index, name in enumerate(names)
        }
        target = folder / "target.npy"
        return cls(read, np.load(target, mmap_mode="r", allow_pickle=False) if target.exists() else None)
