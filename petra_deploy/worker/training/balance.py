"""Adaptive weighting of terms: each is divided by what it is uncertain about, learned beside the model.

    balance = Balance(("original", "labels", "features"))
    total = balance({"original": a, "labels": b, "features": c})

With a scale s_i > 0 for each term L_i, total = sum of L_i / (2 s_i) + log(1 + s_i): a term that
stays large is weighed down, one that is small is weighed up, and the logarithm keeps the scales
from growing without end. Where the total is least in s_i, L_i = 2 s_i^2 / (1 + s_i). A constant factor of
a term is balanced away in time, so weights say which terms count and where the balance starts: s_i begins at 1/2,
where terms count as they are.
Source: Kendall, Gal and Cipolla (arXiv 1705.07115), with the logarithm that stays positive of
Liebel and Koerner (arXiv 1805.06334), so that a term which falls to nothing is not weighed to infinity
as fast as it falls.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Balance(nn.Module):
    """`logs` holds log s_i, in the order of `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.logs = nn.Parameter(torch.full((len(self.names),), math.log(0.5)))

    def forward(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The total of the terms that are there; each one a number. A term without a scale is added as it is."""
        known = [name for name in self.names if name in terms]
        scales = self.logs.exp()[[self.names.index(name) for name in known]]
        losses = torch.stack([terms[name] for name in known]) if known else scales
        total = (losses / (2 * scales) + torch.log1p(scales)).sum()
        return total + sum(loss for name, loss in terms.items() if name not in known)

    def weights(self) -> dict[str, float]:
        """What each term is multiplied by, now."""
        return dict(zip(self.names, (0.5 / self.logs.detach().exp()).tolist(), strict=True))
