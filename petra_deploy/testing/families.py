"""Four families of models, one tiny member of each, on which the contracts try every technique.

    for name, make in FAMILIES.items():
        case = make()                                # petra_deploy.testing.case.Case

A convolutional network with BatchNorm, a recurrent one, a transformer encoder and plain linear layers.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from petra_deploy.testing.case import Case, case


class Cnn(nn.Module):
    """Image (rows, channels, h, w) -> logits; the last feature map is flattened after pooling to 2x2."""

    def __init__(self, width: int = 16, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(channels, width), conv_bn(width, 2 * width, stride=2), conv_bn(2 * width, 2 * width)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return logits


class Recurrent(nn.Module):
    """Sequence (rows, steps, features) -> logits. `pool`: "last" step, "mean" over steps, or "hidden" state."""

    def __init__(self, cell: str = "LSTM", features: int = 8, hidden: int = 24, layers: int = 1, classes: int = 4,
                 bidirectional: bool = False, pool: str = "last", norm: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.rnn = getattr(nn, cell)(features, hidden, layers, batch_first=True, bidirectional=bidirectional)
        width = hidden * (2 if bidirectional else 1)
        self.norm = nn.LayerNorm(width) if norm else None
        self.head = nn.Linear(width, classes)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x)
        if self.pool == "last":
            y = y[:, -1]
        elif self.pool == "mean":
            y = y.mean(1)
        else:
            h = state[0] if isinstance(state, tuple) else state
            y = torch.cat([h[-2], h[-1]], 1) if self.rnn.bidirectional else h[-1]
        logits: Tensor = self.head(y if self.norm is None else self.norm(y))
        return logits


class TorchEncoder(nn.Module):
    """Text encoder of nn.TransformerEncoderLayer: ids (rows, length) and mask, 1 where a token is -> logits."""

    def __init__(self, width: int = 32, layers: int = 2, heads: int = 2, vocabulary: int = 100, classes: int = 4,
                 length: int = 64) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for p in self.encoder.parameters():  # copies of one layer: make them differ
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids) + self.position[: ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        keep = mask.unsqueeze(-1).to(x.dtype)
        logits: Tensor = self.head((x * keep).sum(1) / keep.sum(1).clamp(min=1))
        return logits


class Mlp(nn.Sequential):
    def __init__(self, features: int = 64, width: int = 64, classes: int = 10) -> None:
        super().__init__(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


FAMILIES: Mapping[str, Callable[[], Case]] = {
    "cnn": case("cnn", Cnn, image=(1, 8, 8)),
    "lstm": case("lstm", Recurrent, x=(6, 8)),
    "encoder": case("encoder", lambda: TorchEncoder(layers=1), ranges={"ids": 100, "mask": 2}, ids=(12,), mask=(12,)),
    "mlp": case("mlp", Mlp, x=(64,)),
}  # one layer each where there is a choice: an export costs seconds
