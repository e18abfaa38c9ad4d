"""Early stopping: a tenth of the training rows is held out, and the weights that do best on it are kept.

    learn, held = apart(rows, share=0.1, seed=7)
    rounds = Rounds(patience=5, held=Held(distance, held, size=32, device="cpu"))
    if rounds.enough(model): break      # after each epoch
    rounds.restore(model)

Selection and test rows play no part in it. Where nothing is held out, no epoch is judged.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petra_deploy.worker.training.losses import Distance
from petra_deploy.worker.training.samples import Rows


def apart(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """(the rows to learn from, those held out); at least one in each where there are two or more."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    return rows.only(np.sort(order[count:])), rows.only(np.sort(order[:count]))


@dataclass(frozen=True)
class Held:
    """Rows on which a model is judged: by the mean distance, in eval mode."""

    distance: Distance
    rows: Rows | None
    size: int
    device: str

    def judge(self, model: nn.Module) -> float:
        assert self.rows is not None
        size = min(self.size, len(self.rows))
        total, training = 0.0, model.training
        model.eval()
        try:
            with torch.no_grad():
                starts = range(0, len(self.rows) - size + 1, size)
                for start in starts:
                    batch = self.rows.take(np.arange(start, start + size)).to(self.device)
                    total += float(self.distance(model(*batch.inputs), batch.teacher, batch.target))
        finally:
            model.train(training)
        return total / len(starts)


class Rounds:
    """Epochs judged one after the other; `patience` of them without a better one are enough."""

    def __init__(self, patience: int, held: Held) -> None:
        self._patience, self._held = patience, held
        self._seen: list[float] = []
        self._state: list[Tensor] = []
        self.best: int | None = None

    @property
    def seen(self) -> tuple[float, ...]:
        return tuple(self._seen)

    def enough(self, model: nn.Module) -> bool:
        if self._held.rows is None:
            return False
        found = self._held.judge(model)
        if self.best is None or found < min(self._seen) or not math.isfinite(min(self._seen)):
            self.best = len(self._seen) + 1
            self._state = [tensor.detach().clone() for tensor in _tensors(model)]
        self._seen.append(found)
        return 0 < self._patience <= len(self._seen) - self.best

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back."""
        if self.best is not None:
            with torch.no_grad():
                for tensor, kept in zip(_tensors(model), self._state, strict=True):
                    tensor.copy_(kept)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
