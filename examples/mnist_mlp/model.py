"""A multilayer perceptron on the pixels of an MNIST digit: three hidden layers of 1,024, 2.9 M parameters."""

from torch import Tensor, nn


class Perceptron(nn.Module):
    def __init__(self, pixels: int = 784, width: int = 1024, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(pixels, width), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5),
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 784) in 0 to 1 -> (batch, classes) scores."""
        return self.head(self.body(pixels))


def build() -> nn.Module:
    return Perceptron()
