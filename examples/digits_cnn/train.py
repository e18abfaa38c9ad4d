"""Train ResNet-18 on scikit-learn's digits, enlarged to 32x32 in three channels.

Leaves model.pt (a state_dict) and data/ (train.npz, selection.npz, test.npz) beside this file.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import build
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE = 3, 32, 2e-3


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    digits = load_digits()
    small = (digits.images / 16).astype(np.float32)
    images = small.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
    labels = digits.target.astype(np.int64)
    train, rest = train_test_split(np.arange(len(labels)), test_size=0.4, stratify=labels, random_state=0)
    selection, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    return {n: (images[r], labels[r]) for n, r in (("train", train), ("selection", selection), ("test", test))}


def fit(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    per_epoch = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(images))[: per_epoch * BATCH].view(per_epoch, BATCH):
            batch = images[rows].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.to(memory_format=torch.contiguous_format).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches; the splits stay")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    start = time.monotonic()
    torch.manual_seed(given.seed)
    parts = splits()
    (given.out / "data").mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in parts.items():
        np.savez(given.out / "data" / f"{name}.npz", image=images, target=labels)
    model = build()
    fit(model, *map(torch.from_numpy, parts["train"]))
    torch.save(model.state_dict(), given.out / "model.pt")
    images, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in images.split(64)]) == labels
    print(f"test accuracy {right.float().mean():.4f} on {len(labels)} rows, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
