"""The architectures behind `tests/models.py`, written as users write them.

Constructors take widths and depths, so that a test may have a smaller or a larger one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from petra_deploy.testing.families import conv_bn


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = conv_bn(cin, cout, 1, stride, relu=False) if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down is None else self.down(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """ResNet-18 for small images at width 64 (11 M parameters): no strided stem, no max pool."""

    def __init__(self, width: int = 16, blocks: Sequence[int] = (2, 2, 2, 2), classes: int = 10, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, cin = [], width
        for index, count in enumerate(blocks):
            cout = width << index
            first = Residual(cin, cout, 2 if index else 1)
            stages.append(nn.Sequential(first, *(Residual(cout, cout) for _ in range(count - 1))))
            cin = cout
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(cin, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.bn1(self.conv1(image))))
        return self.fc(x.mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.body = nn.Sequential(
            nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout),
        )  # fmt: skip
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNet(nn.Module):
    """MobileNetV2-like: stages of (expand, width, blocks, stride), widths in units of `width`."""

    def __init__(self, width: int = 16, classes: int = 10, channels: int = 1, deep: bool = False) -> None:
        super().__init__()
        plan = [(1, 1, 1, 1), (4, 2, 2, 2), (4, 2, 2, 1)]
        plan += [(6, 4, 4, 2), (6, 6, 3, 1), (6, 10, 3, 2), (6, 20, 1, 1)] if deep else []
        blocks: list[nn.Module] = []
        cin = width
        for expand, cout, count, stride in plan:
            for i in range(count):
                blocks.append(Inverted(cin, cout * width, stride if i == 0 else 1, expand))
                cin = cout * width
        self.stem = conv_bn(channels, width, stride=1)
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(cin, 4 * cin, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4 * cin, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.last(self.blocks(self.stem(image))).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm transformer block as users write it: one qkv Linear, views, transposes."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e4)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class HandEncoder(nn.Module):
    """The same task as TorchEncoder, written by hand; the first token is classified."""

    def __init__(self, width: int = 32, layers: int = 2, heads: int = 2, vocabulary: int = 100, classes: int = 4,
                 length: int = 64) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)[:, 0])


class Events(nn.Module):
    """Event codes (rows, steps) and their amounts -> one logit: embedding, LSTM, mean over steps."""

    def __init__(self, codes: int = 50, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.rnn = nn.LSTM(width + 1, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, code: Tensor, amount: Tensor) -> Tensor:
        y, _ = self.rnn(torch.cat([self.embed(code), amount.unsqueeze(-1)], 2))
        return self.head(y.mean(1))


class InceptionBlock(nn.Module):
    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(cin, width, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, k, padding=k // 2, bias=False) for k in (9, 19, 39))
        self.pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(cin, width, 1, bias=False))
        self.bn = nn.BatchNorm1d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bottleneck(x)
        return torch.relu(self.bn(torch.cat([*(conv(z) for conv in self.convs), self.pool(x)], 1)))


class Inception(nn.Module):
    """InceptionTime-like: series (rows, channels, steps) -> logits, with one residual shortcut."""

    def __init__(self, channels: int = 1, width: int = 8, depth: int = 3, classes: int = 4) -> None:
        super().__init__()
        sizes = [channels] + [4 * width] * (depth - 1)
        self.blocks = nn.ModuleList(InceptionBlock(cin, width) for cin in sizes)
        self.shortcut = nn.Sequential(nn.Conv1d(channels, 4 * width, 1, bias=False), nn.BatchNorm1d(4 * width))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, series: Tensor) -> Tensor:
        x = series
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(x + self.shortcut(series)).mean(2))


class TwoInputs(nn.Module):
    """An image and a row of numbers -> logits."""

    def __init__(self, width: int = 16, features: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.vision = nn.Sequential(conv_bn(1, width, stride=2), conv_bn(width, width, stride=2))
        self.table = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.vision(image).mean((2, 3)), self.table(numbers)], 1))


class DictModel(nn.Module):
    """Takes one dict, gives a dict."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, width), nn.Linear(3, width)
        self.mean, self.score = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = torch.relu(self.left(batch["left"]) + self.right(batch["right"]))
        return {"mean": self.mean(hidden), "score": self.score(hidden).squeeze(1)}


class Shared(nn.Module):
    """One layer used twice, and two names for one weight."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.twice = nn.Linear(width, width)
        self.also = nn.Linear(width, width)
        self.also.weight = self.twice.weight
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(torch.relu(self.also(x)))
