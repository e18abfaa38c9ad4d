"""MobileNetV2 for 28x28 grey images: 2.2 M parameters."""

from torch import Tensor, nn


class Inverted(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1; a residual where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    PLAN = (  # expand, channels, blocks, stride, as in the paper; fewer strides, since images are small
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        blocks: list[nn.Module] = []
        inputs = 32
        for expand, outputs, count, stride in self.PLAN:
            for index in range(count):
                blocks.append(Inverted(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(1280, classes))

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 28, 28) in 0 to 1 -> (batch, classes) scores."""
        return self.head(self.pool(self.last(self.blocks(self.stem(image)))).flatten(1))


def build() -> nn.Module:
    return MobileNetV2()
