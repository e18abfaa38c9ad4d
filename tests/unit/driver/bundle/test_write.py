import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from petra_deploy.core import cpus, files
from petra_deploy.core.machine import installed
from petra_deploy.core.outcome import Certified, Graph, OnCpu
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Strategy
from petra_deploy.driver.bundle import recipe
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.write import Shipment, keep_baseline, write
from tests.shipments import make_shipment


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bundle_holds_what_the_issue_promises(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    found = {p.relative_to(tmp_path / "bundle").as_posix() for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
    assert found == {
        "model.onnx", "strategy.json", "manifest.json", "example.py", "README.md",
        "triton/my_net_1/config.pbtxt", "triton/my_net_1/1/model.onnx",
    }  # fmt: skip
    assert not list(tmp_path.glob(".bundle*"))


def test_the_manifest_has_every_promised_field(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    m = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert m["schema"] == "petra-deploy/manifest/1"
    assert (m["target"]["name"], m["model"]["sha256"], m["seed"]) == ("cpu", "ab" * 32, 7)
    assert m["inputs"][0] == {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8]}
    assert m["baseline"]["latency_ms"]["p50"] == 4.0
    assert m["candidate"]["latency_ms"]["p90"] == pytest.approx(0.6)
    assert m["candidate"]["latency_ms"]["p99"] is None  # too few samples: never a number
    assert m["candidate"]["throughput_per_s"] == 8000.0
    assert m["speedup"] == {"value": 8.0, "low": 7.8, "high": 8.3, "n": 9, "batch": 1, "origin": "measured"}
    assert m["size_ratio"] == pytest.approx(m["baseline"]["bytes"] / m["candidate"]["bytes"], rel=1e-4)
    assert m["metric"].items() >= {"name": "accuracy", "split": "test", "n": 360, "baseline": 0.98, "candidate": 0.97,
                                   "drop_points": 1.0, "low": 0.2, "high": 1.9}.items()  # fmt: skip
    assert m["candidates_considered"] == 12
    assert {"onnxruntime", "petra-deploy", "python"} <= set(m["versions"])
    assert m["machine"] == {"cpu": "test"}
    assert "few rows" in m["notes"]
    assert "the machine was busy" in m["notes"]


def test_the_notes_name_what_int8_ruined(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    facts: dict[str, object] = {
        "islands": ["stem"], "culprits": [{"block": "stem", "sqnr_db": 3.25}], "sqnr_db": 24.0,
        "sqnr_db_without_islands": 2.0,
    }  # fmt: skip
    graph = Graph(key="g", signature=shipment.workload.signature, bytes=1, facts={"quantize_ort": facts, "opset": 20})
    made = write(tmp_path / "bundle", replace(shipment, chosen=replace(shipment.chosen, graph=graph)), store)
    (note,) = (note for note in made.notes if "stem" in note)
    assert note.startswith("quantize_ort: stem stayed in float")
    assert "stem (3.2 dB)" in note


def test_hashes_are_of_the_files_there_and_of_the_kept_baseline(
    shipment: Shipment, store: Store, tmp_path: Path
) -> None:
    keep_baseline(tmp_path / "baseline", shipment.baseline, store)
    manifest = write(tmp_path / "bundle", shipment, store)
    assert "manifest.json" not in manifest.files
    for name, expected in manifest.files.items():
        assert sha256(tmp_path / "bundle" / name) == expected
    for side in (manifest.baseline, manifest.candidate):
        path = tmp_path / "bundle" / side.file
        assert (sha256(path), path.stat().st_size) == (side.sha256, side.bytes)


def test_without_a_test_score_the_selection_score_stands_and_is_called_so(
    shipment: Shipment, store: Store, tmp_path: Path
) -> None:
    selection = replace(shipment.score, split="selection", n=99)
    early = replace(shipment, test=None, chosen=replace(shipment.chosen, score=selection))
    assert write(tmp_path / "bundle", early, store).metric.split == "selection"


def test_the_baseline_itself_may_ship_and_drops_nothing(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    score = replace(shipment.score, drop=None, baseline=None, value=0.98)
    chosen = replace(shipment.chosen, strategy=Strategy(), score=score)
    metric = write(tmp_path / "bundle", replace(shipment, chosen=chosen, test=None), store).metric
    assert (metric.baseline, metric.candidate, metric.drop_points) == (0.98, 0.98, 0.0)


def test_a_better_bundle_takes_the_place_of_the_last(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    write(tmp_path / "bundle", replace(shipment, considered=13), store)
    assert files.read_json(tmp_path / "bundle" / "manifest.json", Manifest).candidates_considered == 13


def test_a_failed_write_leaves_the_last_bundle_whole(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    lost = replace(shipment.chosen, engine=replace(shipment.engine, key="0" * 64))
    with pytest.raises(KeyError):
        write(tmp_path / "bundle", replace(shipment, chosen=lost, considered=13), store)
    assert files.read_json(tmp_path / "bundle" / "manifest.json", Manifest).candidates_considered == 12
    assert not list(tmp_path.glob(".bundle*"))


def test_the_example_runs_from_any_folder_without_petra_deploy(
    shipment: Shipment, store: Store, tmp_path: Path
) -> None:
    write(tmp_path / "bundle", shipment, store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    check = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
    check += "print(sorted(m for m in sys.modules if m in ('torch', 'petra_deploy', 'onnx')))"
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "bundle" / "example.py")],
        cwd=elsewhere, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    shape, latency, heavy = done.stdout.splitlines()
    assert "output: float32[1, 1, 3]" in shape
    assert re.search(r"latency p50: \d+\.\d+ ms here; the manifest says 0.500 ms", latency)
    assert heavy == "[]"


@pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
def test_a_bundle_for_openvino_says_so_everywhere_and_its_example_runs(store: Store, tmp_path: Path) -> None:
    manifest = write(tmp_path / "bundle", make_shipment(store, tmp_path, "openvino"), store)
    assert (manifest.runtime.name, manifest.target.runtime) == ("openvino", "openvino")
    assert any("openvino backend" in note for note in manifest.notes)
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "An OpenVINO engine" in readme
    assert "pip install openvino numpy" in readme
    (config,) = (tmp_path / "bundle").glob("triton/*/config.pbtxt")
    assert 'backend: "openvino"' in config.read_text()
    check = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
    check += (
        "print([m for m in ('openvino', 'onnxruntime', 'petra_deploy', 'openvino_telemetry') if sys.modules.get(m)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "bundle" / "example.py")],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    shape, _, loaded = done.stdout.splitlines()
    assert "output: float32[1, 1, 3]" in shape
    assert loaded == "['openvino']"


def test_no_row_of_the_data_is_in_the_bundle_only_ranges(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    manifest = write(tmp_path / "bundle", shipment, store)
    assert manifest.example_inputs["image"].shape == (1, 8)
    assert (manifest.example_inputs["kind"].low, manifest.example_inputs["kind"].high) == (0, 3)


def test_strategy_json_fits_the_same_architecture_only(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    read = recipe.read(tmp_path / "bundle" / "strategy.json")
    assert read.strategy == shipment.chosen.strategy
    assert read.promise is not None
    assert read.promise.speedup.value == 8.0
    assert read.obstacles(shipment.layout) == ()
    wider = replace(shipment.layout, groups=(replace(shipment.layout.groups[0], width=4),), parameters=32)
    assert read.obstacles(wider) == ("body has 4 channels, not 3",)
    assert read.obstacles(replace(shipment.layout, parameters=25)) == ("it has 25 parameters, not 24",)


def test_the_readme_says_split_and_origin(shipment: Shipment, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "bundle", shipment, store)
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert "**Speedup 8.00x** [7.8, 8.3], measured" in text
    assert "accuracy on 360 rows of the test split" in text
    random = replace(shipment.workload, selection=replace(shipment.workload.selection, origin="random"))
    write(tmp_path / "bundle", replace(shipment, workload=random), store)
    assert "random inputs" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_manifest_names_the_processors_where_the_accuracy_holds(
    shipment: Shipment, store: Store, tmp_path: Path
) -> None:
    def written(made: Shipment) -> Manifest:
        return write(tmp_path / "bundle", made, store)

    assert shipment.chosen.engine is not None
    assert shipment.chosen.measurement is not None
    floats = written(shipment)
    assert (floats.holds_on, floats.certified) == (cpus.CPUS, None)
    assert "no 8-bit sum can saturate" in floats.holds
    engine = replace(shipment.chosen.engine, facts={"may_saturate": 2})
    measured = replace(shipment.chosen.measurement, machine={"instructions": ["avx2", "avx512"]})
    risky = replace(shipment, chosen=replace(shipment.chosen, engine=engine, measurement=measured))
    assert written(risky).holds_on == cpus.SATURATING  # the arithmetic that the metric was measured with
    found = {name: OnCpu(holds=name in cpus.EXACT, why="accuracy falls by 3.00 points") for name in cpus.CPUS}
    certified = written(replace(risky, certified=Certified(cpus=found, rows=9, metric="accuracy", allowed_points=0.0)))
    assert certified.holds_on == cpus.EXACT
    line = "accuracy holds on: vnni, amx, arm64 (certified on 9 calibration rows); "
    line += "not on avx2, avx512: accuracy falls by 3.00 points"
    assert certified.holds == line
    assert f"- A{line[1:]}.\n" in (tmp_path / "bundle" / "README.md").read_text()
    assert files.read_json(tmp_path / "bundle" / "manifest.json", Manifest) == certified
    gpu = replace(shipment, target=replace(shipment.target, device="cuda", instructions=()))
    assert (written(gpu).holds_on, written(gpu).holds) == ((), "")
