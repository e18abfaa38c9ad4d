"""How far the gate of `petra-deploy compare` can be trusted: false alarms, power, coverage, cost.

    python benchmarks/gate.py --json            # the quick form, under ten minutes; --full takes half an hour
    python benchmarks/gate.py --only equal --only cost

Comparisons are the real thing (worker/measure/duel.py on ONNX Runtime sessions, a fresh pair a round, 5% gate), each
process pinned to a core. Slower engines are chains of more layers, 27 against 25 for 8%; what a call costs beside its
layers makes that a little less. `equal` is one chain of half a millisecond against itself, its core shared with a
process that never rests. `coverage` knows its ratios exactly: a call of either side is so many calls of one engine.
Prints each check with its count, what it must be, and whether it is; exit code 1 where one is not.
"""

import argparse
import concurrent.futures
import contextlib
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from petra_deploy.core import evidence, machine, registry, stats
from petra_deploy.core import rounds as records
from petra_deploy.core.verdict import of_latency, share
from petra_deploy.worker.measure.duel import duel

LIMIT = 0.05
MOST = 20
WIDTH, SIDE = 16, 16
HALF = 40  # layers of about half a millisecond
FEW = 5  # layers of the engine that both sides repeat
Pair = tuple[int, int]  # layers of the base and of the new side, or calls in a call of each
COVERED: tuple[Pair, ...] = ((25, 20), (33, 32), (25, 25), (30, 31), (20, 25), (20, 40))  # by coverage, in turn
COUNTS = {  # of comparisons: full, quick
    "equal": (200, 24), "slower8": (50, 16), "slower2": (200, 32), "slower5": (200, 40), "coverage": (100, 40),
    "stopping": (4000, 1000), "cost": (3, 1),
}  # fmt: skip
SETTINGS = {"threads": 1, "optimization": "all", "provider": "cpu", "cuda_graph": "off", "channels": "first"}


@dataclass
class Check:
    name: str
    count: int
    found: dict[str, Any]
    must: str
    holds: bool
    seconds: float = 0.0


@dataclass
class One:
    """A comparison: its log ratios, its verdict, the bounds of its ratio."""

    logs: list[float]
    verdict: str
    low: float
    high: float
    contended: bool


class Repeated:
    """A Runner whose call is that many calls of the one it holds: ratios of work are then known."""

    def __init__(self, runner: Any, times: int) -> None:
        self._runner, self._times = runner, times
        self.close = runner.close

    def run(self, feeds: Any) -> Any:
        run = self._runner.run
        for _ in range(self._times):
            outputs = run(feeds)
        return outputs


def network(path: Path, layers: int, width: int = 16, side: int = 16) -> None:
    """A chain of convolutions, each with a ReLU."""
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(layers):
        weight = generator.standard_normal((width, width, 3, 3)).astype(np.float32) / (3 * math.sqrt(width))
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width, side, side])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def sized(folder: Path, milliseconds: float, width: int, side: int) -> Path:
    """A chain that takes about that long here."""
    backend, layers = registry.find("backend", "onnxruntime"), 8
    feeds = {"x0": np.ones((1, width, side, side), np.float32)}
    for _ in range(4):
        network(folder / "model.onnx", layers, width, side)
        with backend.open(folder, SETTINGS) as runner:
            times = []
            for _ in range(40):
                start = time.perf_counter()
                runner.run(feeds)
                times.append(time.perf_counter() - start)
        layers = max(1, round(layers * milliseconds / 1e3 / statistics.median(times)))
    return folder


def compared(folder: Path, pair: Pair, repeated: bool, seed: int) -> One:
    """One comparison of two chains, or of one that is called as often as `pair` says."""
    backend = registry.find("backend", "onnxruntime")

    def opener(number: int) -> Callable[[int], Any]:
        if repeated:
            return lambda seed: Repeated(backend.open(folder / str(FEW), SETTINGS, seed=seed), number)
        return lambda seed: backend.open(folder / str(number), SETTINGS, seed=seed)

    (gate,) = gates = share(latency=LIMIT)
    generator = np.random.default_rng(seed)
    feeds = {1: [{"x0": generator.standard_normal((1, WIDTH, SIDE, SIDE)).astype(np.float32)} for _ in range(4)]}
    openers = {"baseline": opener(pair[0]), "candidate": opener(pair[1])}
    done = duel(openers, feeds, gates, most_rounds=MOST, seed=seed, log=lambda _: None)
    said = of_latency(gate, done)
    low, high = said.figure.low, said.figure.high
    return One(
        logs=records.fair_log_ratios(done, "1")[0], verdict=said.verdict, low=0.0 if low is None else low,
        high=math.inf if high is None else high, contended=bool(said.figure.note),
    )  # fmt: skip


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Beside a process on the same core that never rests."""
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # inherits the affinity
    try:
        yield
    finally:
        other.kill()
        other.wait()


def part(
    folder: str, pairs: Sequence[Pair], repeated: bool, seeds: Sequence[int], beside: bool, core: int
) -> list[One]:
    """Comparisons one after another, on one core, in a process of their own."""
    os.sched_setaffinity(0, {core})
    with busy(beside):
        return [compared(Path(folder), pair, repeated, s) for pair, s in zip(pairs, seeds, strict=True)]


def many(
    folder: Path, pairs: Sequence[Pair], seed: int, *, beside: bool = False, fresh: bool = False, repeated: bool = False
) -> list[One]:
    """Split over the cores; with `fresh` a process a comparison. Chains that are not there yet are written."""
    for layers in {FEW, *(number for pair in pairs for number in pair if not repeated)}:
        if not (folder / str(layers)).exists():
            (folder / str(layers)).mkdir()
            network(folder / str(layers) / "model.onnx", layers, WIDTH, SIDE)
    cores = sorted(os.sched_getaffinity(0))
    seeds = [seed + index for index in range(len(pairs))]
    size = 1 if fresh else -(-len(pairs) // len(cores))
    context = multiprocessing.get_context("spawn")
    parts = [(pairs[i : i + size], seeds[i : i + size]) for i in range(0, len(pairs), size)]
    with concurrent.futures.ProcessPoolExecutor(len(cores), mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [
            pool.submit(part, str(folder), ps, repeated, ss, beside, cores[index % len(cores)])
            for index, (ps, ss) in enumerate(parts)
        ]
        return [one for job in jobs for one in job.result()]


def tally(found: Sequence[One]) -> dict[str, Any]:
    ratios = [math.exp(statistics.median(one.logs)) for one in found]
    verdicts = [one.verdict for one in found]
    return {
        "fail": verdicts.count("fail"), "pass": verdicts.count("pass"),
        "inconclusive": verdicts.count("inconclusive"),
        "median_ratio": round(statistics.median(ratios), 5),
        "ratios": [round(min(ratios), 4), round(max(ratios), 4)],
        "median_rounds": statistics.median(len(one.logs) for one in found),
        "most_rounds": max(len(one.logs) for one in found),
        "contended": sum(one.contended for one in found),
        "median_round_sd": round(statistics.median(statistics.stdev(one.logs) for one in found), 5),
    }  # fmt: skip


def equal(folder: Path, count: int, kept: list[One]) -> Check:
    found = many(folder, [(HALF, HALF)] * count, 1_000_000, beside=True)
    kept += found
    told = tally(found)
    good = told["fail"] == 0 and abs(told["median_ratio"] - 1) <= 0.005
    return Check("equal engines, a busy process on the same core", count, told,
                 "no fail; median ratio within 0.5%", good)  # fmt: skip


def slower(folder: Path, count: int, kept: list[One], *, pair: Pair) -> Check:
    found = many(folder, [pair] * count, pair[0] * 1_000_000)
    told, factor = tally(found), pair[1] / pair[0]
    if factor > 1 + LIMIT:
        good, must = told["fail"] == count and told["median_rounds"] <= 8, "all found; median at most 8 rounds"
    elif factor < 1 + LIMIT:
        good, must = told["fail"] == 0, "no fail"
    else:
        good, must = told["fail"] <= 0.025 * count, "fails at most 2.5%"
    return Check(f"{factor - 1:.0%} slower at a 5% gate", count, told, must, good)


def coverage(folder: Path, count: int, kept: list[One]) -> Check:
    pairs = [COVERED[index % len(COVERED)] for index in range(count)]
    found = many(folder, pairs, 5_000_000, fresh=True, repeated=True)
    held, widths = 0, []
    for (base, new), one in zip(pairs, found, strict=True):
        held += one.low <= new / base <= one.high
        widths.append((one.high / one.low) ** 0.5 - 1)
    told = {"held": held, "share": held / count, "median_half_width": round(statistics.median(widths), 4),
            "median_rounds": statistics.median(len(one.logs) for one in found),
            "planted": [round(new / base, 3) for base, new in COVERED]}  # fmt: skip
    return Check("the interval holds a planted ratio, each in a fresh process", count, told, "at least 93%",
                 held >= 0.93 * count)  # fmt: skip


def stopping(folder: Path, count: int, kept: list[One]) -> Check:
    """At the gate itself, looking after each of 60 rounds, and stopping at the first verdict that pleases."""
    centred = [x - statistics.fmean(one.logs) for one in kept for x in one.logs if len(one.logs) > 1]
    generator = np.random.default_rng(7)
    shapes: dict[str, Callable[[int], Any]] = {
        "normal": lambda n: generator.normal(0, 0.015, n),
        "long-tailed (t, 3)": lambda n: 0.01 * generator.standard_t(3, n),
        "skewed (log-normal, 0.5)": lambda n: 0.015 * (np.exp(generator.normal(0, 0.5, n)) - math.exp(0.125)),
    }
    if len(centred) >= 50:
        shapes["these comparisons' own rounds"] = lambda n: generator.choice(centred, n)
    told: dict[str, Any] = {}
    each = count // len(shapes)
    for name, draw in shapes.items():
        pleased = {"fail": 0, "pass": 0}
        for _ in range(each):
            for verdict in ("fail", "pass"):
                pleased[verdict] += _ever(draw(60) + math.log1p(LIMIT), verdict)
        told[name] = {verdict: round(hits / each, 4) for verdict, hits in pleased.items()} | {"count": each}
    fair = [told[name] for name in told if not name.startswith("skewed")]
    slack = 2 * math.sqrt(0.025 * 0.975 / each)
    good = all(max(one["fail"], one["pass"]) <= 0.025 + slack for one in fair)
    return Check("stopping at the first pleasing look (simulation)", each * len(shapes), told,
                 "each at most 2.5% (and two standard errors); of skewed rounds mean and middle differ: told only",
                 good)  # fmt: skip


def _ever(logs: Any, verdict: str) -> bool:
    values = [float(x) for x in logs]
    return any(evidence.decide(values[:n], math.log1p(LIMIT)) == verdict for n in range(stats.FEWEST_ROUNDS, 61))


def cost(folder: Path, count: int, kept: list[One]) -> Check:
    """The whole command, of equal engines: seconds of processor time of it and its children."""
    told, good = {}, True
    for name, milliseconds, width, side, most in (("0.5 ms", 0.5, 16, 16, 10), ("20 ms", 20, 64, 32, 60)):
        with tempfile.TemporaryDirectory() as scratch:
            model = sized(Path(scratch), milliseconds, width, side) / "model.onnx"
            spent = [_command(model) for _ in range(count)]
        told[name] = {"cpu_seconds": [round(s, 1) for s in spent], "most": most}
        good = good and max(spent) <= most
    return Check("processor time of `compare`, whole command", 2 * count, told, "10 s at 0.5 ms, 60 s at 20 ms", good)


def _command(model: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run(
            [sys.executable, "-m", "petra_deploy", "compare", str(model), str(model), "--quiet"], check=True,
            stdout=subprocess.DEVNULL, env={**os.environ, "PETRA_CACHE_DIR": cache},
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


CHECKS: dict[str, Callable[[Path, int, list[One]], Check]] = {
    "equal": equal, "slower8": partial(slower, pair=(25, 27)), "slower2": partial(slower, pair=(50, 51)),
    "slower5": partial(slower, pair=(20, 21)), "coverage": coverage, "stopping": stopping, "cost": cost,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="200 comparisons where the quick form makes 24")
    parser.add_argument("--only", action="append", choices=CHECKS, help="one check; may be repeated")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    kept: list[One] = []
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, check in CHECKS.items():
            if given.only and name not in given.only:
                continue
            start = time.monotonic()
            made = check(folder, COUNTS[name][0 if given.full else 1], kept)
            made.seconds = round(time.monotonic() - start, 1)
            done.append(made)
            print(f"{made.name}: {'holds' if made.holds else 'DOES NOT HOLD'} ({made.must}); "
                  f"{made.count}, {made.seconds:.0f} s: {json.dumps(made.found)}", file=sys.stderr)  # fmt: skip
    if given.json:
        told = {"schema": "petra-deploy/gate-benchmark/1", "form": "full" if given.full else "quick",
                "machine": machine.fingerprint(), "python": platform.python_version(),
                "checks": [asdict(one) for one in done], "holds": all(one.holds for one in done)}  # fmt: skip
        print(json.dumps(told, indent=1))
    return 0 if all(one.holds for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
