"""An exponential moving average of weights while they are trained: it wanders less than they do.

    average = Average(parameters, decay=0.99)
    average.update()                    # after each optimizer step
    with average.in_place(): ...        # the average stands in the model
    average.keep()                      # for good

After t updates the average is d_t times what it was plus (1 - d_t) times the weights, with
d_t = min(decay, (1 + t) / (10 + t)), so that a short training is not dominated by where it began.
Source: Polyak and Juditsky (1992); the rising decay is TensorFlow's ExponentialMovingAverage.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class Average:
    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._weights = [p.detach() for p in parameters]  # share their memory
        self._average = [w.clone() for w in self._weights]

    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands in the model; the weights come back on leaving."""
        weights = [w.clone() for w in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, weights)

    def keep(self) -> None:
        torch._foreach_copy_(self._weights, self._average)
