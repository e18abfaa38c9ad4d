"""Small models, data and hostile files that the loading tests share."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, ids, mask):
        hidden = self.embed(ids) * mask[..., None].float()
        return {"logits": self.fc(hidden.mean(1)), "hidden": hidden}

class Dicts(Two):
    def forward(self, batch):
        return super().forward(batch["ids"], batch["mask"])

class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        raise ValueError("no such thing")
"""


class Net(nn.Module):
    """The same as in NET, importable here."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Touch:
    """Pickled, it makes the file `path` when it is opened."""

    def __init__(self, path: Path, how: str = "system") -> None:
        self.path, self.how = path, how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        if self.how == "exec":
            return exec, (f"open({str(self.path)!r}, 'w').close()",)
        return open, (str(self.path), "w")


def images(rows: int = 60, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.random((rows, 1, 8, 8), dtype=np.float32),
        "target": np.arange(rows) % classes,
    }


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def rewrite(source: Path, out: Path, replaced: dict[str, bytes]) -> None:
    """A copy of a zip archive with some entries' contents replaced (by the end of their names)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = next((v for k, v in replaced.items() if entry.filename.endswith(k)), None)
            new.writestr(entry.filename, old.read(entry) if data is None else data)
