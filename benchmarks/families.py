"""The eight families of models that the project is judged by: each technique alone, and the searched combination.

    python benchmarks/families.py train  --family mlp --seed 0       # the baseline, by the example's own recipe
    python benchmarks/families.py alone  --family mlp --seed 0       # one optimize for each technique
    python benchmarks/families.py search --family mlp --seed 0       # all of them, thirty minutes
    python benchmarks/families.py table                              # all records, in Markdown

Baselines are trained by examples/*/train.py on data that Python packages ship. Every figure is of the test split, which
neither training nor search saw, against the FP32 baseline in ONNX Runtime in the same run. Each run adds its record to
profiles/<machine>/families.json, with date and versions; a run of the same family, seed and technique replaces it.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "petra-out" / "families"
RECORDS = ROOT / "profiles" / "cpu-vnni" / "families.json"
PACKAGES = ("petra-deploy", "torch", "onnxruntime", "neural-compressor", "optuna")
Record = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """`least` and `aim`: speedup at batch 1, at batch 16, and how many times smaller the file is."""

    title: str
    example: str
    least: tuple[int, int, int]
    aim: tuple[int, int, int]
    factory: str = "build"
    train: tuple[str, ...] = ()
    metric: str = "accuracy"


FAMILIES = {
    "resnet": Family("ResNet-18-like, digits 32x32", "digits_cnn", (50, 50, 150), (100, 100, 200)),
    "mobilenet": Family("MobileNetV2-like, MNIST", "mnist_mobilenet", (18, 12, 25), (40, 35, 75)),
    "bert": Family("BERT-like 6x384, text", "text", (10, 10, 12), (20, 20, 30), "build_large", ("--large",)),
    "lstm": Family("LSTM 256x2, rows of MNIST", "mnist_rows_lstm", (25, 20, 35), (40, 40, 100)),
    "inception": Family("InceptionTime-like, UCR", "ucr_inception", (8, 8, 7), (20, 22, 12)),
    "events": Family("event sequences: embedding + LSTM", "events", (8, 8, 10), (25, 25, 60), metric="auc"),
    "mlp": Family("MLP, MNIST", "mnist_mlp", (25, 20, 50), (55, 50, 100)),
    "halves": Family("two inputs: convolutions + MLP", "mnist_halves", (18, 15, 24), (35, 30, 60)),
}


def place(family: str, seed: int) -> Path:
    return OUT / f"{family}-{seed}"


def train(family: str, seed: int) -> None:
    """Train the baseline where it is not there yet."""
    folder, told = place(family, seed), FAMILIES[family]
    if not (folder / "model.pt").exists():
        script = ROOT / "examples" / told.example / "train.py"
        command = [sys.executable, str(script), "--seed", str(seed), "--out", str(folder), *told.train]
        subprocess.run(command, check=True)
        shutil.copy(script.with_name("model.py"), folder)  # where a pickled model looks for its class


def optimize(family: str, seed: int, what: str, options: list[str]) -> Record:
    """Run the real command, and return its figures; a run that met nothing has its reason."""
    folder, told = place(family, seed), FAMILIES[family]
    out = folder / what
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "petra_deploy", "optimize", "model.pt", "--data", "data", "--out", str(out),
               "--metric", told.metric, "--batch", "1,16", "--seed", str(seed), "--json"]  # fmt: skip
    whole = told.example == "mnist_mobilenet"  # pickled: its class is found beside it
    command += ["--trust"] if whole else ["--model", f"model.py:{told.factory}"]
    start = time.monotonic()
    with open(folder / f"{what}.log", "w") as log:
        done = subprocess.run(
            [*command, *options], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, check=False
        )
    record: Record = {
        "family": family,
        "seed": seed,
        "what": what,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - start),
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
    }
    if done.returncode or not done.stdout.strip():
        last = (folder / f"{what}.log").read_text().strip().splitlines()
        why = next((line for line in reversed(last) if "error" in line), f"exit {done.returncode}")
        return record | {"why": why.partition("; the nearest is kept in ")[0]}
    said = json.loads(done.stdout)
    metric, front = said["metric"], json.loads((out / "front.json").read_text())
    speedups = front["outcomes"][front["best"]]["measurement"]["speedups"]
    return record | {
        "machine": {key: said["machine"][key] for key in ("cpu", "instructions", "cores", "system", "python")},
        "speedups": [
            {"batch": each["batch"], "value": speedup["value"], "low": speedup["low"], "high": speedup["high"]}
            for each, speedup in zip(said["candidate"]["by_batch"], speedups, strict=True)
        ],
        "smaller": said["size_ratio"],
        "baseline": metric["baseline"],
        "drop": {"value": metric["drop_points"], "low": metric["low"], "high": metric["high"], "rows": metric["n"]},
        "techniques": said["techniques"],
        "trials": said["candidates_considered"],
        "strategy": json.loads((out / "bundle" / "strategy.json").read_text()),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def techniques(family: str, seed: int) -> tuple[list[str], list[str]]:
    """Those that make a model smaller or faster and apply here; and all of them."""
    sys.path.insert(0, str(ROOT))
    import petra_deploy
    from petra_deploy.core.plan import Phase

    folder, told = place(family, seed), FAMILIES[family]
    factory = None if told.example == "mnist_mobilenet" else str(folder / f"model.py:{told.factory}")
    seen = petra_deploy.inspect(
        str(folder / "model.pt"), data=str(folder / "data"), model_factory=factory, trust=factory is None,
        metric=told.metric,
    ).inspected  # fmt: skip
    every = [offer.technique for offer in seen.offers]
    return [o.technique for o in seen.offers if o.phase is not Phase.RECOVER and not o.settled], every


def alone(family: str, seed: int, only: list[str], minutes: float) -> None:
    """Each technique by itself; what shrinks keeps recovery training beside it."""
    applying, every = techniques(family, seed)
    for name in only or applying:
        kept = {name, "recover", "refresh_batchnorm"}
        without = [option for other in every if other not in kept for option in ("--without", other)]
        file(optimize(family, seed, name, ["--with", name, *without, "--time", f"{minutes}m"]))


def file(record: Record) -> None:
    """Put a record in place of the one of the same family, seed and technique."""
    known = read()
    same = [r for r in known if all(r[key] == record[key] for key in ("family", "seed", "what"))]
    rest = [r for r in known if r not in same]
    RECORDS.write_text("[\n" + ",\n".join(map(json.dumps, [*rest, record])) + "\n]\n")
    print(line(record), flush=True)


def read() -> list[Record]:
    return json.loads(RECORDS.read_text()) if RECORDS.exists() else []


def line(record: Record) -> str:
    """A row of the table: of what the search found, or of a technique alone."""
    told, searched = FAMILIES[record["family"]], record["what"] == "search"
    cells = [told.title, str(record["seed"])] if searched else [_single(record), told.title]
    if "why" in record:
        why = record["why"].removeprefix("error: ").removeprefix("no strategy met the budget: ")
        cells += ["", "", "", "", why] if searched else ["", "", "", why]
    else:
        drop = record["drop"]
        cells += [*(_ratio(each) for each in record["speedups"]), f"{record['smaller']:.3g}x"]
        cells += [f"{told.metric} {record['baseline']:.3f}"] if searched else []
        cells += [f"{drop['value']:.2f} [{drop['low']:.2f}, {drop['high']:.2f}]"]
    if searched:
        how = "" if "why" in record else f"{' + '.join(record['techniques'])}; {record['trials']} candidates, "
        cells += [f"{how}{record['seconds']} s", f"{_figures(told.least)} (aim {_figures(told.aim)})"]
    return f"| {' | '.join(cells)} |"


def _single(record: Record) -> str:
    """A technique, the runtime that its bundle chose where not the usual one, and whether the bundle has it at all."""
    if "why" in record:
        return str(record["what"])
    backend = record["strategy"]["strategy"]["backend"]
    parts = [
        record["what"],
        f"in {backend}" if backend else "",
        "" if record["what"] in record["techniques"] else "(ships without)",
    ]
    return " ".join(filter(None, parts))


def _figures(ratios: tuple[int, int, int]) -> str:
    return ", ".join(f"{ratio}x" for ratio in ratios)


def _ratio(speedup: Record) -> str:
    bounds = "" if speedup["low"] is None else f" [{speedup['low']:.3g}, {speedup['high']:.3g}]"
    return f"{speedup['value']:.3g}x{bounds}"


def table() -> None:
    """Two tables: what the search found, by family; and each technique alone, by technique."""
    order = list(FAMILIES)
    found = (
        "family",
        "seed",
        "batch 1",
        "batch 16",
        "file smaller",
        "baseline",
        "drop on test, points",
        "how",
        "asked",
    )
    single = ("technique", "family", "batch 1", "batch 16", "file smaller", "drop on test, points")
    searched = [r for r in read() if r["what"] == "search"]
    alone = [r for r in read() if r["what"] != "search"]
    _print(found, sorted(searched, key=lambda r: (order.index(r["family"]), r["seed"])))
    print()
    _print(single, sorted(alone, key=lambda r: (r["what"], order.index(r["family"]), r["seed"])))


def _print(heads: tuple[str, ...], records: list[Record]) -> None:
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for record in records:
        print(line(record))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("train", "alone", "search", "table"))
    parser.add_argument("--family", choices=tuple(FAMILIES), action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--technique", action="append", default=[], help="for `alone`: these only")
    parser.add_argument("--minutes", type=float, help="of a run  [default: 30; alone: 5]")
    given = parser.parse_args()
    if given.verb == "table":
        table()
        return 0
    for family in given.family or FAMILIES:
        for seed in given.seed or (0,):
            train(family, seed)
            if given.verb == "alone":
                alone(family, seed, given.technique, given.minutes or 5)
            elif given.verb == "search":
                file(optimize(family, seed, "search", ["--time", f"{given.minutes or 30}m"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
