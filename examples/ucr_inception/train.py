"""Train InceptionTime on OSULeaf, a set of the UCR archive that aeon ships: outlines of leaves.

Leaves model.pt (a state_dict), model.pt2 (torch.export) and data/ (train, selection and test .npz)
beside this file. While it trains, each outline starts at a random point: it is a closed curve.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import build

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE = 30, 16, 3e-3


def osuleaf() -> tuple[np.ndarray, np.ndarray]:
    """Series (442, 1, 427), each of mean 0 and variance 1, and labels 0 to 5: both parts of the archive."""
    spec = find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs aeon: pip install --no-deps aeon")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "OSULeaf"
    text = "".join((folder / f"OSULeaf_{part}.ts").read_text() for part in ("TRAIN", "TEST"))
    rows = [line.rsplit(":", 1) for line in text.splitlines() if line and line[0] not in "#@"]
    series = np.array([values.split(",") for values, _ in rows], dtype=np.float32)
    return series[:, None], np.array([float(label) for _, label in rows]).astype(np.int64) - 1


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    series, labels = osuleaf()
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {"train": order[:242], "selection": order[242:342], "test": order[342:]}
    return {name: (series[r], labels[r]) for name, r in rows.items()}


def fit(model: torch.nn.Module, series: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    per_epoch = len(series) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(series))[: per_epoch * BATCH].view(per_epoch, BATCH):
            starts = torch.randint(series.shape[-1], (BATCH,))
            turned = torch.stack([row.roll(int(start), -1) for row, start in zip(series[rows], starts, strict=True)])
            loss = F.cross_entropy(model(turned), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4:
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
    for name, (series, labels) in parts.items():
        np.savez(given.out / "data" / f"{name}.npz", series=series, target=labels)
    model = build()
    fit(model, *map(torch.from_numpy, parts["train"]))
    torch.save(model.state_dict(), given.out / "model.pt")
    series, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        right = model(series).argmax(1) == labels
    print(f"test accuracy {right.float().mean():.4f} on {len(labels)} rows, {time.monotonic() - start:.0f} s")
    program = torch.export.export(model, (series[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, given.out / "model.pt2")


if __name__ == "__main__":
    main()
