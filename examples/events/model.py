"""Event sequences: an embedding of the event's code, its numbers beside it, an LSTM, one logit."""

import torch
from torch import Tensor, nn

CODES = 512


class EventModel(nn.Module):
    def __init__(self, codes: int = CODES, width: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(width + 2, hidden, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, code: Tensor, amount: Tensor) -> Tensor:
        """Whole numbers (batch, steps) and floats (batch, steps, 2) -> (batch, 1), a logit."""
        states, _ = self.lstm(torch.cat([self.dropout(self.embed(code)), amount], dim=2))
        return self.head(self.dropout(states[:, -1]))


def build() -> nn.Module:
    return EventModel()
