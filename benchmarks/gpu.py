"""What a real GPU does: the whole optimize, then each precision, CUDA graphs off and on; written as a profile.

    python benchmarks/gpu.py --target h100 --runtime onnxruntime --time 4m --save profiles/h100

Needs a CUDA device and a runtime for it (`onnxruntime-gpu`, `tensorrt` or `tensorrt-rtx`; one after the other
where `--runtime` names several). For each example: train it, `petra-deploy optimize` it, then build the model as it
came in FP32, FP16, BF16 and INT8, time each engine against FP32 in the same runtime (rounds, wall clock, copies to
and from the device in it), and the device alone by CUDA events. With `--predict 90s` an optimize that must not see
the device comes first, and `petra-deploy bench` finishes it: what was predicted beside what was measured. The profile
has date, driver and versions; what failed stands in it with its reason.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from petra_deploy.core import files, ledger, machine, registry
from petra_deploy.core.job import Build, Limits, Measure, Scored, Transform
from petra_deploy.core.outcome import Engine, Failed, Figure
from petra_deploy.core.request import Request
from petra_deploy.core.samples import Samples
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Loaded, ModelSource, Workload
from petra_deploy.driver.session import Session, open_session

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *machine.PACKAGES,
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13-libs",
    "nvidia-cudnn-cu13",
)
INT8 = Step(technique="quantize_ort", options={"symmetric": True})
PRECISIONS = {
    "fp32": (),
    "fp16": (Step(technique="half"),),
    "bf16": (Step(technique="half", options={"dtype": "bf16"}),),
    "int8": (INT8, Step(technique="half")),
}
SETTINGS: dict[str, tuple[dict[str, object], ...]] = {
    "onnxruntime": (
        {"cuda_graph": "off", "channels": "first"},
        {"cuda_graph": "auto", "channels": "first"},
        {"cuda_graph": "auto", "channels": "last"},
    ),
    "tensorrt": ({"cuda_graph": "off"}, {"cuda_graph": "auto"}),
    "tensorrt_rtx": ({"cuda_graph": "off"}, {"cuda_graph": "auto"}),
}
BATCHES = (1, 16)
ROUNDS = 3
CALLS = 200


def main() -> int:
    asked = arguments()
    target = machine.resolve(asked.target)
    if why := machine.absent(target):
        print(f"{target.name} is not here: it {why}", file=sys.stderr)
        return 3
    profile: dict[str, Any] = {
        "schema": "petra-deploy/gpu-profile/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": target.name,
        "device": files.plain([vars(device) for device in machine.cuda_devices()]),
        "driver": driver(),
        "machine": machine.fingerprint() | {"versions": machine.versions(PACKAGES)},
    }
    for name in asked.examples.split(","):
        out = Path(asked.out) / name
        example = ROOT / "examples" / name
        seconds = timed(lambda example=example: train(example))
        entry: dict[str, Any] = {"train_seconds": round(seconds, 1), "optimize": {}, "engines": []}
        profile |= {"example": name, "result": entry}
        for runtime in asked.runtime.split(","):
            folder = out.with_name(f"{name}-{runtime}")
            if asked.predict:
                apart = out.with_name(f"{name}-{runtime}-predicted")
                entry["predicted"] = guarded(predicted, example, apart, asked.target, target, runtime, asked.predict)
                save(profile, asked.save, name)
            entry["optimize"][runtime] = guarded(optimize, example, folder, asked.target, target, runtime, asked.time)
            if (folder / "loaded.json").exists():
                for engine in engines(folder, target, runtime):
                    entry["engines"].append(engine)
                    save(profile, asked.save, name)
            save(profile, asked.save, name)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--runtime", default="onnxruntime", help="one or several, with commas")
    parser.add_argument("--examples", default="digits_cnn,text", help="folders of examples/, with commas")
    parser.add_argument("--predict", default="", help="of an optimize that must not see the device; empty: none")
    parser.add_argument("--time", default="4m", help="of each optimize")
    parser.add_argument("--out", default="petra-out/gpu", help="where the run folders go")
    parser.add_argument("--save", default="profiles/h100", help="the folder that gets gpu-EXAMPLE.json")
    return parser.parse_args()


def train(example: Path) -> None:
    if not (example / "model.pt").exists():
        subprocess.run([sys.executable, "train.py"], cwd=example, check=True)


def optimize(example: Path, out: Path, asked: str, target: Target, runtime: str, budget: str) -> dict[str, Any]:
    """The real command; what it said and the manifest's figures."""
    done = command(*arguments_of(example, out, asked, target, runtime, budget), "--require-measured")
    return result(done, out)


def predicted(example: Path, out: Path, asked: str, target: Target, runtime: str, budget: str) -> dict[str, Any]:
    """The same without the device, then finished on it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    before = result(command(*arguments_of(example, out, asked, target, runtime, budget), **hidden), out)
    done = command("bench", str(out), "--target", asked, "--runtime", runtime, "--time", "80s")
    ledgers = ledger.own(target.name)
    entries = json.loads(ledgers.read_text())["entries"] if ledgers.exists() else []
    return {"optimize": before, "bench": result(done, out), "ledger": entries}


def arguments_of(example: Path, out: Path, asked: str, target: Target, runtime: str, budget: str) -> list[str]:
    wanted = [] if runtime == target.runtime else ["--runtime", runtime]
    return [
        "optimize", str(example / "model.pt"), "--model", f"{example / 'model.py'}:build", "--data",
        str(example / "data"), "--target", asked, *wanted, "--max-drop", "1.0", "--time", budget, "--out", str(out),
    ]  # fmt: skip


def command(*given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "petra_deploy", *given], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip
    print(f"$ petra-deploy {' '.join(given)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}", flush=True)
    return done


def result(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"command": ["petra-deploy", *done.args[3:]], "exit_code": done.returncode}
    path = out / "bundle" / "manifest.json"
    if done.returncode or not path.exists():
        return found | {"said": done.stderr[-2000:]}
    manifest = json.loads(path.read_text())
    kept = (
        "speedup", "speedup_over_fp16", "size_ratio", "metric", "techniques", "runtime", "candidates_considered",
        "load_ms", "notes", "candidate", "baseline", "versions",
    )  # fmt: skip
    return found | {key: manifest.get(key) for key in kept}


def engines(out: Path, target: Target, runtime: str) -> Iterator[dict[str, Any]]:
    """One entry a precision, with CUDA graphs off and on; a failure is an entry too."""
    loaded = files.read_json(out / "loaded.json", Loaded)
    request = Request(model=ModelSource(path=str(out)), target=target.name)
    served = replace(target, runtime=runtime)
    with open_session(request, out / "logs-engines", lambda event: None) as session:
        baseline = built(session, loaded.workload, (), served, {"cuda_graph": "off"})
        if isinstance(baseline, Failed):
            yield {"runtime": runtime, "precision": "fp32", "failed": str(baseline)}
            return
        reference = session.must(scored(baseline, loaded.workload, served, None)).outputs
        for precision, steps in PRECISIONS.items():
            for settings in SETTINGS[runtime]:
                entry: dict[str, Any] = {"runtime": runtime, "precision": precision, **settings}
                start = time.monotonic()
                engine = built(session, loaded.workload, steps, served, dict(settings))
                entry |= (
                    {"failed": str(engine)}
                    if isinstance(engine, Failed)
                    else figures(session, engine, baseline, reference, loaded.workload, served)
                )
                entry["seconds"] = round(time.monotonic() - start, 1)
                print(json.dumps({key: entry[key] for key in entry if key != "facts"})[:400], flush=True)
                yield entry


def built(
    session: Session, workload: Workload, steps: tuple[Step, ...], target: Target, settings: dict[str, object]
) -> Engine | Failed:
    graph = session.run(Transform(workload=workload, strategy=Strategy(steps=steps), limits=LIMITS))
    if isinstance(graph, Failed):
        return graph
    engine = session.run(Build(graph=graph.value, target=target, settings=settings, limits=LIMITS))
    return engine if isinstance(engine, Failed) else engine.value


LIMITS = Limits(seconds=300.0)


def scored(engine: Engine, workload: Workload, target: Target, reference: str | None) -> Scored:
    return Scored(
        engine=engine, target=target, split=workload.selection, split_name="selection", metric=workload.metric,
        signature=workload.signature, reference=reference, limits=LIMITS,
    )  # fmt: skip


def figures(
    session: Session, engine: Engine, baseline: Engine, reference: str, workload: Workload, target: Target
) -> dict[str, Any]:
    """Wall latency and speedup over FP32 of the same runtime, drop on the selection split, device time."""
    found: dict[str, Any] = {
        "bytes": engine.bytes,
        "facts": engine.facts,
        "versions": engine.versions,
        "settings": engine.settings,
    }
    score = session.run(scored(engine, workload, target, reference))
    if isinstance(score, Failed):
        return found | {"failed": str(score)}
    found["drop_points"] = shown(score.value.drop)
    measured = session.run(
        Measure(
            engine=engine,
            baseline=baseline,
            target=target,
            split=workload.selection,
            batches=BATCHES,
            rounds=ROUNDS,
            limits=LIMITS,
        )
    )
    if isinstance(measured, Failed):
        return found | {"failed": str(measured)}
    for latency, speedup in zip(measured.value.candidate, measured.value.speedups, strict=True):
        key = f"batch_{latency.batch}"
        found[key] = {
            "p50_ms": shown(latency.p50), "p99_ms": shown(latency.p99), "rows_per_s": shown(latency.throughput),
            "speedup_over_fp32": shown(speedup),
        }  # fmt: skip
        rows = Samples.open(session.store.path(workload.selection.key))
        index = np.arange(latency.batch) % len(rows)
        feeds = {spec.name: np.ascontiguousarray(rows.inputs[spec.name][index]) for spec in engine.signature.inputs}
        found[key]["device_ms"] = guarded(device_ms, session.store.path(engine.key), engine, feeds)
    return found


def device_ms(folder: Path, engine: Engine, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Median milliseconds between two CUDA events around a call, inputs on the device already."""
    backend = registry.find("backend", engine.backend)
    if hasattr(backend, "device_ms"):
        times = backend.device_ms(folder, engine.settings, feeds, CALLS)
    else:
        times = onnxruntime_ms(folder / "model.onnx", engine.settings, feeds)
    ordered = sorted(times)
    return {"p50_ms": statistics.median(times), "p90_ms": ordered[int(0.9 * len(ordered))], "n": len(times)}


def onnxruntime_ms(model: Path, settings: dict[str, object], feeds: dict[str, np.ndarray]) -> list[float]:
    import onnxruntime as ort
    import torch

    from petra_deploy.worker.backends import _ort_device

    stream = torch.cuda.Stream()
    providers = _ort_device.providers(settings)
    for _, options in (entry for entry in providers if isinstance(entry, tuple)):
        options["user_compute_stream"] = str(stream.cuda_stream)
    session = ort.InferenceSession(str(model), providers=providers)
    _ort_device.check(session, settings)
    plain, options = ort.RunOptions(), ort.RunOptions()
    plain.add_run_config_entry("gpu_graph_id", "-1")
    options.add_run_config_entry("gpu_graph_id", "1")
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    results = session.run(None, feeds, plain)
    binding = session.io_binding()
    kept = []
    for name, values in feeds.items():
        kept.append(ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0))
        binding.bind_ortvalue_input(name, kept[-1])
    for spec, result in zip(session.get_outputs(), results, strict=True):
        kept.append(ort.OrtValue.ortvalue_from_shape_and_type(result.shape, result.dtype, "cuda", 0))
        binding.bind_ortvalue_output(spec.name, kept[-1])
    times = []
    for call in range(CALLS + 20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        session.run_with_iobinding(binding, options)
        end.record(stream)
        end.synchronize()
        if call >= 20:
            times.append(start.elapsed_time(end))
    return times


def driver() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
    said = guarded(lambda: subprocess.run(query, capture_output=True, text=True).stdout.strip())
    return {"cuda": machine.gpus()["cuda"], "version, clocks, power limit": said}


def shown(figure: Figure | None) -> Any:
    return None if figure is None else {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def guarded(function: Any, *args: Any) -> Any:
    """What `function` answers, or its error as an entry: one broken case must not cost the others."""
    try:
        return function(*args)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def timed(function: Any) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


def save(profile: dict[str, Any], folder: str, name: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"gpu-{name}.json").write_text(json.dumps(profile, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
