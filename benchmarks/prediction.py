"""Predicted against measured on this processor, out of sample.

    python benchmarks/prediction.py [--strategies 30] [--seed 0] [--json] [--save FILE] [--processor-time]

A microbenchmark makes this machine's target file (`petra-deploy targets detect --measure`). Strategies are
drawn for a ResNet, a MobileNetV2, a transformer encoder and an LSTM (examples/), untrained, since accuracy
plays no role; each is built by the real jobs, predicted from that file alone, and measured beside its
baseline by the paired method, at batch 1 and 16. Exit code 1 where at either a rank correlation, of latency
or of speedup, is below 0.9, or a median error above 25%. `--save` adds the comparisons to a prediction
ledger. On a busy machine `--processor-time` compares with the processor's time in place of the clock's.
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from petra_deploy.core import files, ledger, machine
from petra_deploy.core.job import Build, Inspect, Job, Measure, Predict, Transform
from petra_deploy.core.ledger import Entry
from petra_deploy.core.outcome import Engine, Failed, Measurement
from petra_deploy.core.plan import Layout
from petra_deploy.core.rounds import figures
from petra_deploy.core.store import Store, default_root
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Workload
from petra_deploy.driver import rates
from petra_deploy.driver.dispatch import Dispatch
from petra_deploy.driver.executors import local
from petra_deploy.testing.case import Case, case

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MODELS: dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]]]] = {  # ranges and shapes of their inputs
    "digits_cnn": ({}, {"image": (3, 32, 32)}),
    "mnist_mobilenet": ({}, {"image": (1, 28, 28)}),
    "text": ({"ids": 4096, "mask": 2}, {"ids": (64,), "mask": (64,)}),
    "mnist_rows_lstm": ({}, {"rows": (28, 28)}),
}
BATCHES = (1, 16)
RANK, ERROR = 0.9, 0.25


@dataclass(frozen=True)
class Model:
    name: str
    workload: Workload
    layout: Layout
    baseline: Engine


def example(folder: str) -> Case:
    """The untrained model of an example, and inputs drawn at random."""
    name = f"petra_example_{folder}"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / folder / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{EXAMPLES / folder / 'model.py'} cannot be imported")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    ranges, shapes = MODELS[folder]
    return case(folder, module.build, ranges=ranges, **shapes)()


def drawn(layout: Layout, target: Target, generator: random.Random) -> Strategy:
    """Blocks, widths and a precision, at random; nothing is trained."""
    steps = []
    blocks = [group.name for group in layout.of_kind("block")]
    if blocks and generator.random() < 0.5:
        taken = sorted(generator.sample(blocks, generator.randint(1, len(blocks))))
        steps.append(Step(technique="drop_blocks", options={"blocks": taken}))
    strength = generator.uniform(0, 0.93) if generator.random() < 0.8 else 0.0
    for kind, technique, step in (("channels", "prune", target.channel_step), ("units", "shrink_rnn", 8)):
        ratios = {group.name: min(0.95, strength * generator.uniform(0.6, 1.05)) for group in layout.of_kind(kind)}
        if ratios and strength:
            steps.append(Step(technique=technique, options={"ratios": ratios, "round_to": step}))
    convolutional = any(name.startswith("Conv") for name in layout.operators)
    quantizers = ("quantize_inc", "quantize_ort") if convolutional else ("quantize_inc", "quantize_dynamic")
    if quantizer := generator.choice((None, *quantizers)):
        steps.append(Step(technique=quantizer, options={"reduce_range": target.saturates}))
    return Strategy(steps=tuple(steps))


def compared(
    count: int, seed: int, target: Target, store: Store, run: Dispatch, timed: Callable[[Measurement], Measurement]
) -> list[Entry]:
    """An entry a strategy and batch size; strategies that cannot be built, or make an artifact again, are redrawn."""

    def must(job: Job[Any]) -> Any:
        done = run(job)
        if isinstance(done, Failed):
            raise SystemExit(f"error: {done}")
        return done.value

    models = []
    for name in MODELS:
        workload = example(name).workload(store)
        layout = must(Inspect(workload=workload, target=target)).layout
        graph = must(Transform(workload=workload, strategy=Strategy()))
        models.append(Model(name, workload, layout, must(Build(graph=graph, target=target))))
    generator, entries, seen = random.Random(seed), [], set()
    while len(seen) < count:
        model = models[len(seen) % len(models)]
        strategy = drawn(model.layout, target, generator)
        graph = run(Transform(workload=model.workload, strategy=strategy))
        if isinstance(graph, Failed) or graph.value.key in seen:
            print(f"  redrawn: {graph if isinstance(graph, Failed) else 'the same artifact again'}", file=sys.stderr)
            continue
        engine = must(Build(graph=graph.value, target=target))
        fields = {"engine": engine, "baseline": model.baseline, "target": target, "batches": BATCHES}
        predicted = must(Predict(split=model.workload.selection, **fields))
        measured = timed(must(Measure(split=model.workload.selection, seconds=0.3, seed=seed, **fields)))
        seen.add(graph.value.key)
        for warning in measured.warnings:
            print(f"  {warning}", file=sys.stderr)
        found = ledger.compare(predicted, measured, model=model.name, strategy=strategy.describe(), artifact=engine.key)
        entries += found
        print(row(found[0]), file=sys.stderr, flush=True)
    return entries


def by_processor_time(measured: Measurement, store: Store) -> Measurement:
    """The same measurement, with the processor's time of each call in place of the clock's."""
    record = json.loads(next(store.path(measured.rounds).glob("*.json")).read_text())
    for one in record["rounds"]:
        for sides in one["batches"].values():
            for side in ("candidate", "baseline"):
                sides[side]["hot_ns"] = sides[side]["cpu_ns"]
    found = figures(record["rounds"])
    return replace(
        measured, candidate=found.candidate, baseline=found.baseline, speedups=found.speedups, warnings=found.warnings
    )


def row(entry: Entry) -> str:
    return (
        f"| {entry.model} | {entry.strategy} | {entry.batch} | {entry.predicted_ms:.3f} | {entry.measured_ms:.3f} "
        f"| {entry.latency_ratio - 1:+.0%} | {entry.predicted_speedup:.2f} | {entry.measured_speedup:.2f} "
        f"| {entry.speedup_ratio - 1:+.0%} |"
    )


def summary(entries: Sequence[Entry], batch: int) -> dict[str, float]:
    chosen = [entry for entry in entries if entry.batch == batch]
    latency = [abs(entry.latency_ratio - 1) for entry in chosen]
    speedup = [abs(entry.speedup_ratio - 1) for entry in chosen]
    return {
        "batch": batch,
        "strategies": len(chosen),
        "latency_rank": spearman([e.predicted_ms for e in chosen], [e.measured_ms for e in chosen]),
        "latency_median_error": statistics.median(latency),
        "latency_largest_error": max(latency),
        "speedup_rank": spearman([e.predicted_speedup for e in chosen], [e.measured_speedup for e in chosen]),
        "speedup_median_error": statistics.median(speedup),
        "speedup_largest_error": max(speedup),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share the mean of their ranks."""
    ranks = []
    for values in (a, b):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    return float(np.corrcoef(*ranks)[0, 1])


def met(found: dict[str, float]) -> bool:
    ranks = min(found["latency_rank"], found["speedup_rank"])
    return ranks >= RANK and max(found["latency_median_error"], found["speedup_median_error"]) <= ERROR


def main() -> int:
    parser = argparse.ArgumentParser(description="Predicted against measured on this processor.")
    parser.add_argument("--strategies", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path, metavar="ledger.json", help="add the comparisons to this ledger")
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    start = time.monotonic()
    store = Store(default_root())
    with tempfile.TemporaryDirectory() as scratch:
        found, attained = rates.measured(machine.resolve("cpu"))
        rates.save(Path(scratch) / "cpu.toml", found)
        target = machine.resolve(str(Path(scratch) / "cpu.toml"))
        print(f"rates measured: {time.monotonic() - start:.0f} s, {attained.graphs} graphs", file=sys.stderr)
        executor = local.open(local.Options(store=store.root, logs=Path(scratch) / "logs", read=(Path("/"),)))
        try:
            timed = (lambda m: by_processor_time(m, store)) if given.processor_time else (lambda m: m)
            entries = compared(given.strategies, given.seed, target, store, Dispatch(store, executor), timed)
        finally:
            executor.close()
    sums = [summary(entries, batch) for batch in BATCHES]
    clock = "processor time" if given.processor_time else "clock"
    seconds = round(time.monotonic() - start)
    if given.json:
        facts = {"machine": machine.fingerprint(), "clock": clock, "seconds": seconds, "attained": attained}
        print(files.dumps({**facts, "summary": sums, "entries": entries}))
    else:
        print("| model | strategy | batch | predicted, ms | measured, ms | off | predicted speedup | measured | off |")
        print("|---|---|---|---|---|---|---|---|---|")
        for entry in entries:
            print(row(entry))
        for each in sums:
            print(f"\nbatch {each['batch']}, {each['strategies']} strategies, by {clock}")
            for what in ("latency", "speedup"):
                print(
                    f"{what}: rank correlation {each[f'{what}_rank']:.3f}, median error "
                    f"{each[f'{what}_median_error']:.1%}, largest {each[f'{what}_largest_error']:.0%}"
                )
        print(f"\n{machine.cpu_model()} ({' '.join(machine.instructions())}), {seconds} s")
    if given.save:
        kept = [replace(entry, clock="processor" if given.processor_time else "wall") for entry in entries]
        ledger.append("cpu", kept, given.save)
    return 0 if all(map(met, sums)) else 1


if __name__ == "__main__":
    sys.exit(main())
