"""`petra-deploy profile-ops` as a user runs it, workers and all."""

import json
import shutil
from pathlib import Path

import pytest

from petra_deploy.cli.main import run
from petra_deploy.core.store import Store
from petra_deploy.driver.bundle.write import Shipment, write
from petra_deploy.driver.operators import baseline_of
from tests.unit.worker.nets import add_graph


def test_two_files_are_compared_layer_by_layer(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, widths in (("small", (8,)), ("large", (8, 64))):
        files.append(tmp_path / f"{name}.onnx")
        shutil.copy(store.path(add_graph(store, widths).key) / "model.onnx", files[-1])
    small, large = map(str, files)
    assert run(["profile-ops", large, "--against", small, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "petra-deploy/operators/1"
    assert (said["engine"], said["base"]) == (large, small)
    assert len(said["profiled"]["engine"]["layers"]) == len(said["profiled"]["base"]["layers"]) + 1
    assert sum(one["share"] for one in said["profiled"]["engine"]["operators"]) == pytest.approx(1)
    assert run(["profile-ops", small, "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["layer", "operator", "precision", "us", "of", "it",
                                                               "conversions"]  # fmt: skip


def test_what_is_no_engine_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile-ops", str(tmp_path)]) == 2
    assert "holds no model.onnx" in capsys.readouterr().err


def test_the_baseline_beside_a_bundle_is_taken_where_it_is_the_one_the_manifest_names(
    shipment: Shipment, store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bundle = write(out / "bundle", shipment, store)
    assert baseline_of(out / "bundle") is None
    (out / "baseline").mkdir()
    beside = out / "baseline" / "model.onnx"
    shutil.copy(store.path(shipment.baseline.engine.key) / "model.onnx", beside)  # type: ignore[union-attr]
    assert bundle.baseline.sha256
    assert baseline_of(out / "bundle") == beside.parent == baseline_of(out)
    beside.write_bytes(b"another")
    assert baseline_of(out / "bundle") is None
