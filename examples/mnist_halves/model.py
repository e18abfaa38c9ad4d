"""Two inputs, a tower each: convolutions see the left half of a digit, a perceptron the right. 1.4 M parameters."""

import torch
from torch import Tensor, nn


class TwoTowers(nn.Module):
    def __init__(self, channels: int = 64, width: int = 768, classes: int = 10) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *_conv(1, channels), *_conv(channels, channels), nn.MaxPool2d(2),
            *_conv(channels, 2 * channels), *_conv(2 * channels, 2 * channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.pixels = nn.Sequential(nn.Linear(392, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * channels + width, 256), nn.ReLU(), nn.Linear(256, classes))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(batch, 1, 28, 14) and (batch, 392), both in 0 to 1 -> (batch, classes) scores."""
        return self.head(torch.cat([self.image(left), self.pixels(right)], dim=1))


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def build() -> nn.Module:
    return TwoTowers()
