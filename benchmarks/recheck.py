"""Measure a bundle's speedup again with onnxruntime and numpy alone; none of petra-deploy's code runs.

    python benchmarks/recheck.py petra-out/model [--batch 1] [--rounds 7]

Exit code 1 where the ratio lies neither within the manifest's interval nor within 5% of its value.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def session(path: Path, settings: dict) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(settings.get("threads", 1))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = {"none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL, "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC}
    if settings.get("optimization") in levels:
        options.graph_optimization_level = levels[settings["optimization"]]
    disabled = list(settings.get("disabled_optimizers") or [])
    if settings.get("fusions") == "no_skip_layer_norm":
        disabled.append("SkipLayerNormFusion")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)


def call_ms(engine: ort.InferenceSession, feeds: dict, calls: int) -> float:
    """The median of a run of calls; the first is left out."""
    engine.run(None, feeds)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        engine.run(None, feeds)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    manifest = json.loads((given.out / "bundle" / "manifest.json").read_text())
    settings = manifest["runtime"]["settings"]
    batch = given.batch or manifest["speedup"]["batch"]
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in manifest["inputs"]:
        example = manifest["example_inputs"][spec["name"]]
        shape = (batch, *example["shape"])
        drawn = rng.uniform(example["low"], example["high"], shape)
        feeds[spec["name"]] = (np.rint(drawn) if "float" not in spec["dtype"] else drawn).astype(spec["dtype"])
    ratios = []
    for _ in range(given.rounds):
        paths = {"baseline": given.out / "baseline" / "model.onnx", "candidate": given.out / "bundle" / "model.onnx"}
        engines = {
            "baseline": session(paths["baseline"], {"threads": settings.get("threads", 1)}),
            "candidate": session(paths["candidate"], settings),
        }
        times = {"baseline": [], "candidate": []}
        for engine in engines.values():
            call_ms(engine, feeds, 5)
        for _ in range(6):
            for name in random.sample(sorted(engines), 2):
                times[name].append(call_ms(engines[name], feeds, 15 if name == "baseline" else 60))
        ratios.append(statistics.median(times["baseline"]) / statistics.median(times["candidate"]))
    ratio = statistics.median(ratios)
    low, high, value = (manifest["speedup"][key] for key in ("low", "high", "value"))
    agrees = (low is not None and low <= ratio <= high) or abs(ratio / value - 1) <= 0.05
    print(json.dumps({"measured_again": ratio, "rounds": ratios, "manifest": manifest["speedup"], "agrees": agrees}))
    return 0 if agrees or batch != manifest["speedup"]["batch"] else 1


if __name__ == "__main__":
    sys.exit(main())
