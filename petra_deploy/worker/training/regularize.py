"""Regularizers of weights, as terms of a loss: their size, their sparsity, factors at right angles.

    norm(matrices, power=2)         # mean of |w|^power
    hoyer(matrices)                 # (sum |w|)^2 / sum w^2 over the number of weights: 1 dense, 0 sparse
    orthogonal(pairs)               # of U (out, rank) and V (rank, in): how far from right angles

Sources: Hoyer-square, Yang, Wen and Li (arXiv 1908.09979); orthogonal factors, Yang et al. (arXiv 2004.09031).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

FACTORED = "Factored"  # the class of a layer that stands as two: an nn.Sequential, first V then U
_TINY = 1e-12


def matrices(model: nn.Module) -> list[Tensor]:
    """Weights of two dimensions and more that are trained: no biases, no norms."""
    return [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]


def norm(weights: Sequence[Tensor], power: int) -> Tensor:
    """Mean of |w|^power over all weights; power 1 (lasso) or 2 (ridge)."""
    total = torch.stack([w.abs().sum() if power == 1 else w.square().sum() for w in weights]).sum()
    return total / sum(w.numel() for w in weights)


def hoyer(weights: Sequence[Tensor]) -> Tensor:
    """Mean over the tensors of (sum |w|)^2 / (n sum w^2): 1/n where one of n weights is left, 1 where all are alike."""
    each = [w.abs().sum().square() / (w.square().sum() + _TINY) / w.numel() for w in weights]
    return torch.stack(each).mean()


def orthogonal(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over pairs of (||U'U - I||^2 + ||VV' - I||^2) / rank^2, for U (out, rank) and V (rank, in).

    Columns of U and rows of V are brought to length 1 first: the factors carry the singular values
    between them, and those stay free.
    """
    found = []
    for u, v in pairs:
        total = torch.zeros((), device=u.device, dtype=u.dtype)
        for rows in (u.T, v):
            unit = rows / (rows.norm(dim=1, keepdim=True) + _TINY)
            total = total + (unit @ unit.T - torch.eye(len(unit), device=u.device, dtype=u.dtype)).square().sum()
        found.append(total / u.shape[1] ** 2)
    return torch.stack(found).mean()


def factors(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(U, V) of each layer that a low-rank step has made two of, found by its class's name."""
    found = []
    for module in model.modules():
        if type(module).__name__ == FACTORED and isinstance(module, nn.Sequential):
            layers = [layer for layer in module if isinstance(getattr(layer, "weight", None), Tensor)]
            if len(layers) >= 2:
                found.append((_columns(layers[-1]), _rows(layers[0])))
    return found


def _rows(first: nn.Module) -> Tensor:
    """(rank, in): a row for each number that passes between the two."""
    weight = cast(Tensor, first.weight)
    return weight.T if isinstance(first, nn.Embedding) else weight.flatten(1)


def _columns(last: nn.Module) -> Tensor:
    """(out, rank): of a convolution's weight (out, rank, ...), its places with its outputs."""
    return cast(Tensor, last.weight).movedim(1, -1).flatten(0, -2)
