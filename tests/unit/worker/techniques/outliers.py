"""A model that int8 ruins in one known place: an activation with one channel ten thousand times the others."""

import torch
from torch import nn

from tests.models import Case

CULPRIT = "4"  # the layer that reads that activation


def spoiled() -> Case:
    """Five linear layers; what layer 2 puts out as channel 0 is magnified, and layer 4 takes it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(32, 8)).eval()
        with torch.no_grad():
            for layer in model[::2]:
                layer.bias.zero_()
            model[2].weight[0] *= 1e4  # type: ignore[operator]
            model[4].weight[:, 0] *= 1e-4  # type: ignore[operator]
    return Case("spoiled", model, {"x": (32,)}, {})
