"""A model and data of each family that people bring, small enough to train in seconds, and learnable.

    family = FAMILIES["audio"]
    family.save(folder)         # net.py, model.pt, train.npz, selection.npz, test.npz

`net.py` is `family_nets.py` beside this file, as a user's own file would be.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.end_to_end import family_nets

Rows = dict[str, np.ndarray]  # inputs by name, and "labels"
TRAIN, SELECTION, TEST = 800, 400, 400
RECOVERY = 64  # of the training rows: so few that recovery is short, however much time there is


@dataclass(frozen=True)
class Family:
    build: str  # the function of net.py
    rows: Callable[[np.random.Generator, int], Rows]
    epochs: int = 6

    def save(self, folder: Path) -> None:
        folder.mkdir()
        shutil.copy(family_nets.__file__, folder / "net.py")
        made = self.rows(np.random.default_rng(0), TRAIN + SELECTION + TEST)
        cuts = {"train": (0, RECOVERY), "selection": (TRAIN, TRAIN + SELECTION), "test": (TRAIN + SELECTION, None)}
        for name, (first, last) in cuts.items():
            np.savez(folder / f"{name}.npz", **{key: values[first:last] for key, values in made.items()})
        torch.save(self._trained({key: values[:TRAIN] for key, values in made.items()}), folder / "model.pt")

    def _trained(self, rows: Rows) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = getattr(family_nets, self.build)()
        *inputs, labels = (torch.from_numpy(values) for values in rows.values())
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(self.epochs):
            for batch in torch.randperm(len(labels)).split(32):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(*(x[batch] for x in inputs)), labels[batch])
                loss.backward()
                optimizer.step()
        return model.state_dict()


def images(generator: np.random.Generator, rows: int) -> Rows:
    """12 x 12 gratings of four directions, phases at random, under noise."""
    labels = generator.integers(4, size=rows)
    y, x = np.mgrid[:12, :12]
    angle = (labels * np.pi / 4)[:, None, None]
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 1.3 + generator.uniform(0, 6.3, (rows, 1, 1)))
    return {"image": _noisy(generator, waves[:, None], 0.5), "labels": labels}


def series(generator: np.random.Generator, rows: int) -> Rows:
    """96 steps of a sine, a square or a saw tooth, periods and phases at random."""
    labels = generator.integers(3, size=rows)
    phase = np.arange(96) / generator.uniform(12, 20, (rows, 1)) + generator.random((rows, 1))
    shapes = np.stack([np.sin(2 * np.pi * phase), np.sign(np.sin(2 * np.pi * phase)), 2 * (phase % 1) - 1])
    return {"wave": _noisy(generator, shapes[labels, np.arange(rows)][:, None], 0.15), "labels": labels}


def text(generator: np.random.Generator, rows: int) -> Rows:
    """24 codes of which a few say the class (4k to 4k + 3), padded with zeros: ids and mask."""
    labels = generator.integers(4, size=rows)
    ids = generator.integers(20, 200, (rows, 24))
    said = generator.random((rows, 24)) < 0.3
    said[:, 0] = True
    ids = np.where(said, labels[:, None] * 4 + generator.integers(1, 5, (rows, 24)), ids)
    mask = (np.arange(24) < generator.integers(8, 25, (rows, 1))).astype(np.int64)
    return {"ids": ids * mask, "mask": mask, "labels": labels}


def events(generator: np.random.Generator, rows: int) -> Rows:
    """20 codes and their amounts; the class is the kind of code (three of ten codes each) that most was spent on."""
    kinds = generator.integers(3, size=rows)
    codes = np.where(
        generator.random((rows, 20)) < 0.5, kinds[:, None] * 10, generator.integers(3, size=(rows, 20)) * 10
    )
    codes += generator.integers(10, size=(rows, 20))
    amounts = generator.exponential(1.0, (rows, 20)).astype(np.float32)
    spent = np.stack([(amounts * (codes // 10 == kind)).sum(1) for kind in range(3)], 1)
    return {"code": codes, "amount": amounts, "labels": spent.argmax(1)}


def audio(generator: np.random.Generator, rows: int) -> Rows:
    """800 samples of a tone, a chirp upwards, a chirp downwards, or noise of a narrow band."""
    labels = generator.integers(4, size=rows)
    t = np.arange(800) / 800
    low, span = generator.uniform(30, 60, (rows, 1)), generator.uniform(100, 200, (rows, 1))
    sweep = np.array([0, 1, -1, 0])[labels][:, None] * span
    wander = np.cumsum(generator.normal(0, 0.5, (rows, 800)), 1) * (labels == 3)[:, None]
    start = np.where(sweep < 0, low + span, low)
    wave = np.sin(2 * np.pi * (start * t + sweep * t**2 / 2) + wander)
    return {"wave": _noisy(generator, wave[:, None], 0.1), "labels": labels}


def two_inputs(generator: np.random.Generator, rows: int) -> Rows:
    """A grating of two directions and six numbers whose sum has a sign: four classes."""
    grating = images(generator, rows)
    numbers = generator.normal(0, 1, (rows, 6)).astype(np.float32)
    labels = 2 * (grating["labels"] % 2) + (numbers.sum(1) > 0)
    return {"image": grating["image"], "numbers": numbers, "labels": labels.astype(np.int64)}


def _noisy(generator: np.random.Generator, values: np.ndarray, noise: float) -> np.ndarray:
    return (values + generator.normal(0, noise, values.shape)).astype(np.float32)


FAMILIES = {
    "images": Family("images", images),
    "series": Family("series", series),
    "text": Family("text", text),
    "events": Family("events", events, epochs=10),
    "audio": Family("audio", audio),
    "two_inputs": Family("two_inputs", two_inputs),
}
