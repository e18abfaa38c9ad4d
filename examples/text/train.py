"""Train a BERT-like encoder to tell whose source code 64 tokens are from.

Four classes: Python's standard library, torch, sympy and SQLAlchemy, all here already. Names that
would give the answer away are taken out; whole files go to train, selection or test.

Leaves model.pt (a checkpoint: a dict with the state_dict in it) and data/ (train, selection and
test .npz) beside this file.
"""

import re
import sysconfig
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import LENGTH, VOCABULARY, build

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE = 3, 32, 1e-3
ROWS = {"train": 3000, "selection": 1000, "test": 1000}  # over all classes
WORD = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9_]")
TELLING = {"torch", "sympy", "sqlalchemy", "aten", "caffe", "nn", "sql", "python"}
PAD, UNKNOWN = 0, 1


def sources() -> list[list[Path]]:
    """The .py files of each class, in an order that is the same each time."""
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for package in ("torch", "sympy", "sqlalchemy"):
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"this example needs {package}, which petra-deploy itself installs")
        folders.append(Path(spec.submodule_search_locations[0]))
    unwanted = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "__pycache__"}
    return [
        sorted(p for p in folder.rglob("*.py") if not unwanted & set(p.relative_to(folder).parts) and _fits(p))
        for folder in folders
    ]


def _fits(path: Path) -> bool:
    return 2_000 < path.stat().st_size < 200_000


def windows(path: Path) -> list[list[str]]:
    """Tokens of a file in pieces of up to LENGTH, without comments and imports."""
    lines = (line.split("#")[0] for line in path.read_text(errors="replace").splitlines())
    code = "\n".join(line for line in lines if not line.lstrip().startswith(("import ", "from ")))
    words = [word for word in WORD.findall(code) if word.lower() not in TELLING]
    return [words[i : i + LENGTH] for i in range(0, len(words) - LENGTH // 2, LENGTH)]


def splits() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    rows: dict[str, list[tuple[list[str], int]]] = {name: [] for name in ROWS}
    for label, files in enumerate(sources()):
        order = generator.permutation(len(files))
        cuts = {"train": order[: len(order) * 6 // 10], "selection": order[len(order) * 6 // 10 : len(order) * 8 // 10]}
        cuts["test"] = order[len(order) * 8 // 10 :]
        for name, part in cuts.items():
            pieces = [piece for index in part for piece in windows(files[index])]
            chosen = generator.choice(len(pieces), ROWS[name] // 4, replace=False)
            rows[name] += [(pieces[index], label) for index in chosen]
    counts = Counter(word for words, _ in rows["train"] for word in words)
    number = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(VOCABULARY - 2))}
    return {name: encode([some[i] for i in generator.permutation(len(some))], number) for name, some in rows.items()}


def encode(rows: list[tuple[list[str], int]], number: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.full((len(rows), LENGTH), PAD, dtype=np.int64)
    for row, (words, _) in enumerate(rows):
        ids[row, : len(words)] = [number.get(word, UNKNOWN) for word in words]
    return ids, (ids != PAD).astype(np.int64), np.array([label for _, label in rows])


def fit(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    per_epoch = len(ids) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(ids))[: per_epoch * BATCH].view(per_epoch, BATCH):
            loss = F.cross_entropy(model(ids[rows], mask[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    start = time.monotonic()
    torch.manual_seed(0)
    parts = splits()
    (HERE / "data").mkdir(exist_ok=True)
    for name, (ids, mask, labels) in parts.items():
        np.savez(HERE / "data" / f"{name}.npz", ids=ids, mask=mask, target=labels)
    model = build()
    fit(model, *map(torch.from_numpy, parts["train"]))
    torch.save({"model_state_dict": model.state_dict(), "epoch": EPOCHS}, HERE / "model.pt")
    ids, mask, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        right = (
            torch.cat([model(*part).argmax(1) for part in zip(ids.split(100), mask.split(100), strict=True)]) == labels
        )
    print(f"test accuracy {right.float().mean():.4f} on {len(labels)} rows, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
