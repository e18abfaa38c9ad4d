"""Let BatchNorm layers take their statistics from chosen batches, each batch counting once."""

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of `model` that keep a running mean and variance."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@contextlib.contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let `norms` take the plain mean over all batches seen inside. They end in eval mode."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
