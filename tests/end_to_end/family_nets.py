"""The networks of `families.py`, in one file as a user has it: `--model net.py:audio`. It needs torch alone."""

import torch
from torch import Tensor, nn


def images() -> nn.Module:
    return Images(4)


def series() -> nn.Module:
    return Waves(1, 48, kernel=9, stride=1, classes=3)


def text() -> nn.Module:
    return Text(200, 64, 4)


def events() -> nn.Module:
    return Events(30, 96, 3)


def audio() -> nn.Module:
    return Waves(1, 48, kernel=32, stride=8, classes=4)


def two_inputs() -> nn.Module:
    return TwoInputs(4)


class Residual(nn.Module):
    """Two convolutions, of one dimension or two, and what they are added to."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dimensions - 1]
        self.conv1, self.norm1 = conv(width, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, padding=1, bias=False), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class Vision(nn.Sequential):
    """Image (rows, 1, high, wide) -> features (rows, width)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), Residual(width, 2), Residual(width, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


class Images(nn.Module):
    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.vision, self.head = Vision(width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.vision(image))


class Waves(nn.Module):
    """Samples (rows, channels, steps) -> logits: a front end that may stride, residual blocks, a mean."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, classes: int) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(channels, width, kernel, stride, kernel // 2), nn.BatchNorm1d(width))
        self.blocks = nn.Sequential(*(Residual(width, 1) for _ in range(3)))
        self.head = nn.Linear(width, classes)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.front(wave))).mean(2))


class Text(nn.Module):
    """ids and mask (rows, steps) -> logits; the mean over the tokens that are there."""

    def __init__(self, vocabulary: int, width: int, classes: int, length: int = 24) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder(self.embed(ids) + self.position, src_key_padding_mask=mask == 0)
        kept = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1))


class Events(nn.Module):
    """code and amount (rows, steps) -> logits: an embedding scaled by the amount, two GRU layers, their last state."""

    def __init__(self, codes: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, 32)
        self.rnn = nn.GRU(33, width, 2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, code: Tensor, amount: Tensor) -> Tensor:
        amount = amount.unsqueeze(-1)
        _, state = self.rnn(torch.cat([self.embed(code) * amount, amount], 2))
        return self.head(state[-1])


class TwoInputs(nn.Module):
    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.vision = Vision(width)
        self.table = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.vision(image), self.table(numbers)], 1))
