"""Train the demo's network, as a user would have: `python -m petra_deploy.demo.train FOLDER`.

Leaves model.pt (a state_dict), model.py (its class) and data.npz (`image`, `target`) in FOLDER, in
about 20 seconds on two cores. Only those rows are trained on that `optimize` will call train.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from petra_deploy.demo.model import DigitsNet
from petra_deploy.worker.workload import npz
from petra_deploy.worker.workload.data import Brought
from petra_deploy.worker.workload.splits import complete

EPOCHS = 6
BATCH = 32
RATE = 4e-3  # the highest of the one-cycle schedule


def train(folder: Path, seed: int = 0) -> tuple[Path, Path, Path]:
    """Write the model, the data and the model's source; give their paths in this order.

    `seed` is that of `optimize`, which cuts the rows by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_path, data_path, source_path = folder / "model.pt", folder / "data.npz", folder / "model.py"
    with np.load(Path(__file__).with_name("digits.npz")) as digits:
        image = (digits["images"].astype(np.float32) / 16)[:, None].repeat(2, axis=2).repeat(2, axis=3)
        np.savez(data_path, image=image, target=digits["labels"].astype(np.int64))
    parts, _ = complete(Brought(whole=npz.read(data_path, ("image",))), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet()
        _fit(model, torch.tensor(parts["train"].inputs["image"]), torch.tensor(parts["train"].target), seed)
    torch.save(model.state_dict(), model_path)
    shutil.copyfile(Path(__file__).with_name("model.py"), source_path)
    return model_path, data_path, source_path


def _fit(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
