"""The headline with the target on another machine: compressed and trained here, built, run and timed there."""

import json

import onnxruntime

from petra_deploy.core import files
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from tests.end_to_end.conftest import ARGUMENTS


def test_a_bundle_whose_engine_was_built_run_and_timed_there(place, far, monkeypatch):
    monkeypatch.setenv("PETRA_SSH", far.ssh)
    strategy = Strategy(steps=(Step(technique="quantize_ort"),))
    recipe = {"schema": "petra-deploy/strategy/1", "strategy": json.loads(files.dumps(strategy))}
    (place.folder / "int8.json").write_text(json.dumps(recipe))
    ran = place.petra(
        "apply", "int8.json", *ARGUMENTS, "--target", f"ssh://far/cpu?python={far.python}", "--batch", 1,
        "--max-drop", 5, "--out", "far", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    bundle, manifest = place.folder / "far" / "bundle", ran.json
    assert manifest["target"]["name"] == "cpu"
    assert manifest["speedup"]["origin"] == "measured"
    assert set(manifest["machine"]["versions"]) == {"onnxruntime", "onnx", "numpy"}, "the other environment's"
    assert "torch" in manifest["versions"], "this one's"
    onnxruntime.InferenceSession(str(bundle / manifest["candidate"]["file"]))
    for path in bundle.rglob("*"):
        if path.is_file():
            for secret in ("ssh://", "127.0.0.1", str(far.folder)):
                assert secret.encode() not in path.read_bytes(), f"{path} names the machine"
    assert json.loads((place.folder / "far" / "run.json").read_text())["remote"]["host"] == "far"
    workload, there = files.parse_json(place.folder / "far" / "loaded.json")["workload"], Store(far.cache)
    for stays in (workload["train"]["key"], workload["calibration"]["key"], workload["model"]):
        assert stays not in there, "neither the model nor the rows that it learns from leave this machine"
    crossed = {path.name for path in (there.root / "entries").rglob("*")}
    assert "target.npy" not in crossed, "nor do labels"
    assert "0.npy" in crossed


def test_a_target_that_is_not_there_is_3_and_not_predicted(place, far, monkeypatch):
    monkeypatch.setenv("PETRA_SSH", far.ssh)
    ran = place.petra("optimize", *ARGUMENTS, "--target", "t4", "--remote", "far", "--remote-python", far.python)
    assert ran.code == 3, ran.err
    assert "far is not t4: it " in ran.err
