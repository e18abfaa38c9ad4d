"""A bundle under another version of its runtime: the installed one by another number, so the answer is known."""

import json
import shutil
from pathlib import Path

import pytest

from petra_deploy import refresh
from petra_deploy.core import files
from petra_deploy.core.advice import Advice
from petra_deploy.core.errors import BadInput
from petra_deploy.core.store import Store, digest_tree
from petra_deploy.driver.bundle.write import Shipment, write
from petra_deploy.driver.report.refresh import table
from tests.renamed_runtime import REFUSES, SLOWER, write_wheel


@pytest.fixture
def bundle(shipment: Shipment, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside its original, as in a run folder; pip finds versions that are made here alone."""
    write_wheel(tmp_path / "wheels", "1.99.0")
    write_wheel(tmp_path / "wheels", "1.98.0", SLOWER)
    write_wheel(tmp_path / "wheels", "1.97.0", REFUSES)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PETRA_CACHE_DIR", str(tmp_path / "cache"))
    write(tmp_path / "out" / "bundle", shipment, store)
    assert shipment.baseline.engine is not None
    shutil.copytree(store.path(shipment.baseline.engine.key), tmp_path / "out" / "baseline")
    return tmp_path / "out" / "bundle"


def test_the_same_runtime_by_another_number_computes_the_same_and_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = digest_tree(bundle)
    advice = refresh(bundle, "onnxruntime==1.99.0", target="cpu", rounds=6)
    assert digest_tree(bundle) == before
    assert advice.versions == {"onnxruntime": "1.99.0"} != advice.installed
    assert not advice.replayed
    assert advice.same_file
    assert "were not replayed, because the run that made it is not beside it" in advice.notes[0]
    judged, comparison = advice.trial.judged, advice.comparison
    assert judged is not None
    assert (judged.metric, judged.rows, judged.tried, judged.drop.value) == ("agreement", "made-up", 1.0, 0.0)
    assert comparison is not None
    assert comparison.new.sha256 == comparison.base.sha256
    assert comparison.new.versions == advice.versions
    assert len(comparison.rounds) == 6
    assert comparison.verdicts[0].figure.known() == pytest.approx(1.0, abs=0.5)
    assert advice.trial.standing is not None
    assert advice.trial.standing.promised is None  # the manifest is of a machine called "test"
    assert files.decode(json.loads(files.dumps(advice)), Advice, "itself") == advice
    assert table(advice).splitlines()[-1] == f"{advice.advice}: {advice.why}"


def test_a_version_with_a_planted_slowdown_is_not_taken(bundle: Path) -> None:
    advice = refresh(bundle, "onnxruntime==1.98.0", target="cpu")
    assert advice.advice == "keep"
    assert "times as long with onnxruntime 1.98.0" in advice.why
    assert advice.trial.latency is not None
    assert advice.trial.latency.figure.known() > 1.5


def test_a_version_that_no_longer_serves_the_file_needs_another_search(bundle: Path) -> None:
    advice = refresh(bundle, "onnxruntime==1.97.0", target="cpu")
    assert advice.advice == "search again"
    assert "no kernel for MatMul(13)" in advice.why
    assert (advice.versions, advice.comparison) == ({}, None)
    assert table(advice).splitlines()[-1] == f"search again: {advice.why}"


def test_a_version_of_another_runtime_is_refused(bundle: Path) -> None:
    with pytest.raises(BadInput, match="is served by onnxruntime, and openvino brings openvino"):
        refresh(bundle, "openvino==2099.1", target="cpu")
