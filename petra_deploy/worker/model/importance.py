"""How much each channel, head or hidden unit matters.

    scores = channel_scores(model, coupling, "magnitude_l2", seed=0)    # float64, (width,)
    keep(small, {coupling: strongest(scores, 16)})

Judged from weights alone, a channel's score is the mean, over all layers that make or read it, of the norm
of its weights there divided by the mean norm in that layer (group importance of DepGraph, arXiv 2301.12900):

| importance   | in each layer                                                     |
|--------------|-------------------------------------------------------------------|
| magnitude_l1 | sum of absolute weights                                           |
| magnitude_l2 | Euclidean norm                                                    |
| bn_scale     | absolute scale of the BatchNorm that follows (arXiv 1708.06519)   |
| lamp         | squared norm over the sum of all that are no smaller (2010.07611) |
| random       | by seed                                                           |

"taylor" and "hessian" are judged from data: the score is the plain sum, over those layers, of what
worker/training/saliency.py says of each weight, which is in units of the loss already. "lamp" was made to
compare layers; here, where each group has its own ratio, it only weighs the layers of one group otherwise.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule
from petra_deploy.worker.model.readers import Part
from petra_deploy.worker.model.recurrent import Kept, Recurrence, suffix
from petra_deploy.worker.model.surgery import Coupling, Place

Importance = Literal["magnitude_l1", "magnitude_l2", "bn_scale", "lamp", "taylor", "hessian", "random"]
FROM_DATA = ("taylor", "hessian")


def channel_scores(model: nn.Module, group: Coupling, importance: Importance, seed: int) -> Tensor:
    """Higher is more important. "bn_scale" ranks by |gamma| where a BatchNorm follows, else by magnitude_l2.

    For "taylor" and "hessian", `model` is the one that `saliency` made, whose weights are their own saliency.
    """
    if importance == "random":
        return torch.rand(group.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norms = [place for place in group.places if place.dim is None and _has_scale(submodule(model, place.layer))]
    places = norms if importance == "bn_scale" and norms else group.places
    order = 1.0 if importance in ("magnitude_l1", *FROM_DATA) else 2.0
    scores = [score for place in places for score in _of_place(model, place, order)]
    if not scores:
        return torch.zeros(group.width, dtype=torch.float64)
    if importance in FROM_DATA:
        return torch.stack(scores).sum(0)
    relative = [lamp(score) if importance == "lamp" else score / score.mean() for score in scores if score.any()]
    return torch.stack(relative).mean(0) if relative else torch.zeros(group.width, dtype=torch.float64)


def lamp(norms: Tensor) -> Tensor:
    """Each squared norm over the sum of all that are no smaller."""
    squares = norms.square()
    order = squares.argsort(stable=True)
    rest = squares[order].flip(0).cumsum(0).flip(0)  # of equals, the first counts the others as no smaller
    return torch.empty_like(squares).index_copy_(0, order, squares[order] / rest)


def _of_place(model: nn.Module, place: Place, order: float) -> list[Tensor]:
    """The norms in the layer's weight, if it has one; shifts and statistics say nothing about importance."""
    found = [values for name, values in surgery.weights(model, place) if name.startswith("weight")]
    if not found or not all(place.positions):
        return []
    flat = torch.cat([values.reshape(len(values), -1).double() for values in found], 1).cpu()
    entries = torch.linalg.vector_norm(flat, order, dim=1)
    return [torch.stack([torch.linalg.vector_norm(entries[list(at)], order) for at in place.positions])]


def _has_scale(layer: nn.Module) -> bool:
    return isinstance(layer, _NormBase) and layer.affine


def strongest(scores: Tensor, count: int) -> list[int]:
    """The `count` best, ascending; of equals the first."""
    order = torch.argsort(scores, descending=True, stable=True)
    return sorted(order[:count].tolist())


def rounded_width(width: int, ratio: float, step: int) -> int:
    """Channels that stay when the share `ratio` goes: rounded up to a multiple of `step`, at least one step.

    A narrow layer (less than two steps wide) would not shrink at all; there the step is halved until
    two of them fit, so 24 channels shrink in steps of 8, and 6 in steps of 2.
    """
    while step > 1 and width < 2 * step:
        step = (step + 1) // 2
    steps = math.ceil(width * (1.0 - ratio) / step - 1e-6)  # 0.3 of 10 is 3, whatever floats say
    return min(width, max(steps, 1) * step)


def strongest_units(model: nn.Module, group: Recurrence, count: int) -> Kept:
    """In each layer and direction the units with the largest weights, in and out of them."""
    scores = {part: _unit_scores(model, group, part) for part in group.parts}
    if group.tied:
        scores = dict.fromkeys(group.parts, torch.stack(list(scores.values())).sum(0))
    return {part: tuple(strongest(score, count)) for part, score in scores.items()}


def _unit_scores(model: nn.Module, group: Recurrence, part: Part) -> Tensor:
    """The product of the norms of what a unit receives and of what is read of it: float64, (units,)."""
    layer = submodule(model, group.name)
    depth, way = part
    end, width = suffix(layer, part), group.width

    def weight(name: str) -> Tensor:
        return cast(Tensor, getattr(layer, name)).detach().double().cpu()

    received = torch.cat([weight(f"weight_ih{end}"), weight(f"weight_hh{end}")], 1)
    incoming = received.reshape(-1, width, received.shape[1]).square().sum((0, 2))
    projected = hasattr(layer, f"weight_hr{end}")
    outgoing = weight(f"weight_hr{end}" if projected else f"weight_hh{end}").square().sum(0)
    for name in (f"weight_ih_l{depth + 1}", f"weight_ih_l{depth + 1}_reverse"):
        if hasattr(layer, name) and not projected:
            outgoing += weight(name)[:, way * width : (way + 1) * width].square().sum(0)
    for (source, reader, side), positions in group.readers.items():
        if source == part:
            for name, values in surgery.weights(model, surgery.Place(reader, side, positions)):
                if name.startswith("weight"):
                    squares = values.double().cpu().reshape(len(values), -1).square().sum(1)
                    outgoing += torch.stack([squares[list(at)].sum() for at in positions])
    return (incoming * outgoing).sqrt()
