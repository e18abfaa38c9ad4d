"""An LSTM that reads an MNIST digit row by row: two layers of 256 units, 0.8 M parameters."""

from torch import Tensor, nn


class RowReader(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """(batch, 28, 28): 28 steps of 28 pixels -> (batch, classes) scores."""
        states, _ = self.lstm(rows)
        return self.head(states[:, -1])


def build() -> nn.Module:
    return RowReader()
