"""A small real model, its data, and the real command line in a child, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(self.body(self.stem(image)).mean((2, 3)))


def build():
    return Net()
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@dataclass(frozen=True)
class Place:
    """A folder with net.py, model.pt, data.npz and parts of its rows, and the command run in it."""

    folder: Path

    def petra(self, *arguments, timeout=300):
        done = subprocess.run(self.command(*arguments), cwd=self.folder, env=self.environment(), capture_output=True,
                              text=True, timeout=timeout, check=False)  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments):
        """The command, running; Ctrl-C reaches it even where a background shell has it ignored."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def command(self, *arguments):
        return [sys.executable, "-m", "petra_deploy", *map(str, arguments)]

    def environment(self):
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PETRA_CACHE_DIR": str(self.folder / "cache"), "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}


def network(folder: Path) -> torch.nn.Module:
    scope: dict[str, object] = {"__name__": "net"}
    exec((folder / "net.py").read_text(), scope)
    return scope["build"]()  # type: ignore[operator]


def train(model: torch.nn.Module, x: np.ndarray, y: np.ndarray, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(5):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(NET)
    digits = load_digits()
    x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    np.savez(folder / "data.npz", image=x, labels=y)
    for name, rows in (("few", slice(200)), ("selection", slice(1000, 1400)), ("test", slice(1400, None))):
        np.savez(folder / f"{name}.npz", image=x[rows], labels=y[rows])
    torch.save(train(network(folder), x[:1000], y[:1000]).state_dict(), folder / "model.pt")
    torch.save(train(network(folder), x[:1000], y[:1000], seed=1).state_dict(), folder / "retrained.pt")
    return Place(folder)


ARGUMENTS = ("model.pt", "--model", "net.py:build", "--data", "data.npz")
APART = ("--train", "few.npz", "--selection", "selection.npz", "--test", "test.npz")
BRIEFLY = (*ARGUMENTS[:3], *APART)  # so few rows to train on that however much time there is, training is short


@pytest.fixture(scope="session")
def optimized(place) -> Ran:
    """One finished run in `first/`, shared by all tests that look at a bundle."""
    done = place.petra("optimize", *ARGUMENTS, "--trials", 2, "--time", "90s", "--out", "first", "--json")
    assert done.code == 0, done.err
    return done
