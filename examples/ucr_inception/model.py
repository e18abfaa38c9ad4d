"""InceptionTime (arXiv 1909.04939) for one-channel series: six modules, a residual every three."""

import torch
from torch import Tensor, nn


class Inception(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, width, 1, bias=False) if inputs > 1 else nn.Identity()
        cin = width if inputs > 1 else inputs
        self.convs = nn.ModuleList(nn.Conv1d(cin, width, k, padding=k // 2, bias=False) for k in (9, 19, 39))
        self.pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bottleneck(x)
        return self.relu(self.norm(torch.cat([*(conv(y) for conv in self.convs), self.pool(x)], dim=1)))


class Residual(nn.Module):
    """Three inception modules and a shortcut around them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Inception(inputs if i == 0 else 4 * width, width) for i in range(3)))
        self.shortcut = nn.Sequential(nn.Conv1d(inputs, 4 * width, 1, bias=False), nn.BatchNorm1d(4 * width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class InceptionTime(nn.Module):
    def __init__(self, classes: int = 6, width: int = 24) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Residual(1, width), Residual(4 * width, width))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, series: Tensor) -> Tensor:
        """(batch, 1, steps) -> (batch, classes) scores."""
        return self.head(self.pool(self.blocks(series)).flatten(1))


def build() -> nn.Module:
    return InceptionTime()
