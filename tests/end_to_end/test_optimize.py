import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from jsonschema import validate

from petra_deploy.core.machine import installed
from tests.end_to_end.conftest import ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]


def test_stdout_is_one_json_object_which_fits_its_schema(place, optimized):
    said = optimized.json
    out = said.pop("out")
    assert Path(out) == place.folder / "first"
    assert said == json.loads((place.folder / "first/bundle/manifest.json").read_text())
    validate(said, json.loads((ROOT / "docs/schemas/manifest.json").read_text()))
    assert "Traceback" not in optimized.err


def test_the_manifest_says_what_was_measured_and_on_which_rows(optimized):
    said = optimized.json
    assert said["speedup"]["origin"] == "measured"
    assert said["speedup"]["value"] > 1
    assert said["metric"]["split"] == "test"
    assert said["metric"]["low"] <= said["metric"]["drop_points"] <= said["metric"]["high"]
    assert said["metric"]["drop_points"] <= 1.0
    assert said["metric"]["n"] == 359
    assert 1 <= said["candidates_considered"] <= 2  # fewer on a machine so slow that the time is used up


@pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
def test_finalists_are_tried_in_the_other_runtime_and_the_bundle_says_which_ships(place, optimized):
    assert "trying the finalists in openvino" in optimized.err
    shipped = optimized.json["runtime"]["name"]
    recipe = json.loads((place.folder / "first/bundle/strategy.json").read_text())
    assert recipe["strategy"]["backend"] == ("" if shipped == "onnxruntime" else shipped)
    assert f"pip install {shipped} numpy" in (place.folder / "first/bundle/README.md").read_text()


def test_every_file_of_the_bundle_has_its_hash(place, optimized):
    bundle = place.folder / "first/bundle"
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"manifest.json"}
    said = optimized.json["files"]
    assert set(said) == files
    for name, digest in said.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    assert place.petra("verify", "first/bundle").code == 0


def test_the_engine_is_smaller_and_answers_for_any_batch(place, optimized):
    bundle = place.folder / "first/bundle"
    onnx.checker.check_model(str(bundle / "model.onnx"))
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    with np.load(place.folder / "data.npz") as data:
        x, y = data["image"], data["labels"]
    (output,) = session.run(None, {"image": x[1000:]})
    assert (output.argmax(1) == y[1000:]).mean() > 0.9
    assert session.run(None, {"image": x[:1]})[0].shape == (1, 10)
    assert optimized.json["size_ratio"] > 1


def test_the_example_runs_with_onnxruntime_and_numpy_alone(place, optimized):
    script = place.folder / "first/bundle/example.py"
    imported = {line.split()[1].split(".")[0] for line in script.read_text().splitlines() if line.startswith("import ")}
    assert "torch" not in imported
    done = subprocess.run([sys.executable, str(script)], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_outside_out_and_the_cache(place, optimized):
    known = {"net.py", "model.pt", "retrained.pt", *(f"{name}.npz" for name in ("data", "few", "selection", "test"))}
    known |= {"first", "cache", "__pycache__"}
    assert {"first", "cache"} <= {p.name for p in place.folder.iterdir()}
    made = {p.name for p in place.folder.iterdir()} - known
    assert not {name for name in made if not name.startswith("run")}, made


def test_a_finished_folder_is_not_overwritten(place, optimized):
    again = place.petra("optimize", *ARGUMENTS, "--trials", 1, "--out", "first")
    assert again.code == 2
    assert "--resume" in again.err


def test_the_recipe_holds_on_the_same_and_on_a_retrained_model(place, optimized):
    recipe = "first/bundle/strategy.json"
    for number, model in enumerate(("model.pt", "retrained.pt")):
        done = place.petra(
            "apply",
            recipe,
            model,
            *ARGUMENTS[1:],
            "--max-drop",
            5,
            "--batch",
            1,
            "--out",
            f"run-apply-{number}",
            "--json",
        )
        assert done.code in (0, 1), done.err
        if done.code == 0:
            assert done.json["techniques"] == optimized.json["techniques"]
        else:  # a smaller speedup than recorded: only noise may say so
            assert "no longer holds" in done.err


def test_the_recipe_refuses_another_architecture(place, optimized):
    (place.folder / "run_other.py").write_text((place.folder / "net.py").read_text().replace("64", "48"))
    done = place.petra(
        "apply",
        "first/bundle/strategy.json",
        "--model",
        "run_other.py:build",
        "--data",
        "data.npz",
        "--out",
        "run-other",
    )
    assert done.code == 2, done.err
    assert "architecture" in done.err


def test_an_onnx_model_is_quantized_and_the_run_says_what_is_not_possible(place, optimized):
    source = place.folder / "first/baseline/model.onnx"
    done = place.petra("optimize", source, "--data", "data.npz", "--runtime", "onnxruntime", "--batch", 1,
                       "--trials", 1, "--time", "60s", "--out", "run-onnx")  # fmt: skip
    assert done.code in (0, 1), done.err
    assert "prune is not available" not in done.err  # its graph is lifted into layers
    assert "refresh_batchnorm is not available: the model has no BatchNorm layer" in done.err  # they were folded


def test_a_model_that_is_tiny_already_ends_with_the_sentence_and_without_a_bundle(place):
    (place.folder / "run_tiny.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    with np.load(place.folder / "data.npz") as held:
        np.savez(place.folder / "run_tiny.npz", input=held["image"], labels=held["labels"])
    torch.save(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).state_dict(), place.folder / "run_tiny.pt"
    )
    done = place.petra("optimize", "run_tiny.pt", "--model", "run_tiny.py:build", "--data", "run_tiny.npz",
                       "--runtime", "onnxruntime", "--trials", 1, "--time", "60s", "--out", "run-tiny")  # fmt: skip
    assert done.code == 1, done.err
    assert "cannot gain here by what was tried: the best reached 0." in done.err
    assert not (place.folder / "run-tiny/bundle").exists()
