"""TensorRT or TensorRT-RTX on a real GPU: build, open, run, agree with ONNX Runtime, and be timed.

    python benchmarks/trt_smoke.py export FOLDER      # anywhere with torch: graphs, feeds
    python benchmarks/trt_smoke.py run FOLDER         # where the GPU is; no torch

`run` prints a JSON line a case: two families in FP32, FP16 and INT8, with CUDA graphs and without, by
whichever of the two packages can be imported; then three builds of one graph, a folder without a plan,
and a shape outside of the profile. Each case is a process of its own, so that a crash is a line too. An
exception is printed whole, and the exit code is 1 if there was any. Times are of events on the device
(`device_ms`) and of the wall (`wall_ms`, copies included), medians of 200 calls after 20.
"""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES, PRECISIONS = ("cnn", "encoder"), ("fp32", "fp16", "int8")
ROWS = (1, 16)


def export(folder: Path) -> int:
    from petra_deploy.core import files
    from petra_deploy.testing.case import case
    from petra_deploy.testing.families import Cnn, TorchEncoder
    from petra_deploy.worker.model.export import export as to_onnx
    from petra_deploy.worker.techniques import half, quantize_ort

    cases = {
        "cnn": case("cnn", lambda: Cnn(width=64, channels=3), image=(3, 64, 64)),
        "encoder": case("encoder", lambda: TorchEncoder(width=256, layers=4, heads=8, length=128),
                        ranges={"ids": 100, "mask": 2}, ids=(128,), mask=(128,)),
    }  # fmt: skip
    for name, make in cases.items():
        made, place = make(), folder / name
        place.mkdir(parents=True, exist_ok=True)
        to_onnx(made.adapter(), made.signature(), made.tensors(2), place / "fp32.onnx")
        steps = {"fp16": (half, half.Options()), "int8": (quantize_ort, quantize_ort.Options(symmetric=True))}
        for precision, (technique, options) in steps.items():
            with tempfile.TemporaryDirectory() as scratch:
                applied = technique.apply(place / "fp32.onnx", options, made.tools(Path(scratch), rows=32))
                shutil.copyfile(applied.model, place / f"{precision}.onnx")
        files.write_json(place / "signature.json", made.signature())
        for rows in ROWS:
            tensors = made.tensors(rows, seed=5)
            np.savez(place / f"{rows}.npz", **{k: v.numpy() for k, v in zip(made.shapes, tensors, strict=True)})
        print(f"{name}: {', '.join(sorted(path.name for path in place.iterdir()))}")
    return 0


def run(folder: Path) -> int:
    backends = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    if not backends:
        print(json.dumps({"error": "neither tensorrt nor tensorrt_rtx is installed"}))
        return 1
    failed = False
    for backend in backends:
        cases = [
            {"case": "speed", "family": family, "precision": precision, "cuda_graph": graph}
            for family in FAMILIES for precision in PRECISIONS for graph in ("on", "off")
        ]  # fmt: skip
        more = [{"case": name, "family": "cnn", "precision": "fp16"} for name in ("lottery", "no plan", "outside")]
        for case in [*cases, *more]:
            asked = json.dumps({"backend": backend, **case})
            done = subprocess.run(
                [sys.executable, __file__, "case", str(folder), asked], capture_output=True, text=True, check=False
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            died = {**json.loads(asked), "error": f"exit code {done.returncode}", "stderr": done.stderr[-4000:]}
            for line in lines if done.returncode == 0 and lines else [*lines, json.dumps(died)]:
                failed |= "error" in json.loads(line)
                print(line, flush=True)
    return int(failed)


def one(folder: Path, asked: dict[str, Any]) -> int:
    try:
        told = _case(folder, asked)
    except BaseException as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    print(json.dumps({**asked, **told}), flush=True)
    return 0


def _case(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    from petra_deploy.core import files, registry
    from petra_deploy.core.errors import Problem
    from petra_deploy.core.outcome import Graph
    from petra_deploy.core.target import Target
    from petra_deploy.core.workload import Signature

    backend = registry.find("backend", asked["backend"])
    device = backend.VENDOR.devices()[0]
    target = Target(name="here", runtime=asked["backend"], device="cuda", device_name=device.name,
                    compute_capability=device.compute_capability)  # fmt: skip
    place = folder / asked["family"]
    model = place / f"{asked['precision']}.onnx"
    graph = Graph(key="smoke", bytes=model.stat().st_size,
                  signature=files.read_json(place / "signature.json", Signature))  # fmt: skip
    settings: dict[str, object] = {"cuda_graph": asked["cuda_graph"]} if "cuda_graph" in asked else {}
    if asked["case"] == "lottery":
        settings["builds"] = 3
    told: dict[str, Any] = {"device": device.name, "capability": device.compute_capability, **backend.describe()}
    with tempfile.TemporaryDirectory() as scratch:
        made, start = Path(scratch), time.perf_counter()
        if asked["case"] == "no plan":
            shutil.copyfile(model, made / "model.onnx")
        else:
            engine = backend.build(graph, model, target, settings, made)
            told |= {"build_s": _since(start), "plan_bytes": engine.bytes, "facts": engine.facts}
            settings = engine.settings
        start = time.perf_counter()
        with backend.open(made, settings) as runner:
            told |= {"open_s": _since(start), "files": sorted(path.name for path in made.iterdir())}
            if asked["case"] == "outside":
                feeds = {k: np.resize(v, (300, *v.shape[1:])) for k, v in np.load(place / "1.npz").items()}
                try:
                    runner.run(feeds)
                except Problem as problem:
                    return told | {"refused": problem.reason}
                raise AssertionError("300 rows were accepted, the profile ends at 256")
            for rows in ROWS:
                told[f"rows_{rows}"] = _measured(runner, model, dict(np.load(place / f"{rows}.npz")))
            told["captured"] = runner.captures
        start = time.perf_counter()
        with backend.open(made, settings, seed=1) as again:
            told["open_again_s"] = _since(start)
            again.run(dict(np.load(place / "1.npz")))
    return told


def _measured(runner: Any, model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    from petra_deploy.worker.backends._trt_lottery import by_processor, difference

    first, walls = runner.run(feeds), []
    for _ in range(220):
        start = time.perf_counter()
        last = runner.run(feeds)
        walls.append(1e3 * (time.perf_counter() - start))
    expected = by_processor(model, feeds)
    ms = runner.device_ms(feeds, 220)[20:]
    return {
        "device_ms": round(statistics.median(ms), 5), "device_ms_least": round(min(ms), 5),
        "wall_ms": round(statistics.median(walls[20:]), 5), "dtypes": [str(values.dtype) for values in last],
        "from_processor": None if expected is None else difference(expected, last), "repeats": difference(first, last),
    }  # fmt: skip


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        sys.exit(one(Path(sys.argv[2]), json.loads(sys.argv[3])))
    if len(sys.argv) != 3 or sys.argv[1] not in ("export", "run"):
        sys.exit(__doc__)
    sys.exit({"export": export, "run": run}[sys.argv[1]](Path(sys.argv[2])))
