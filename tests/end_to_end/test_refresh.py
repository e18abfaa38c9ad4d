"""A finished run's bundle under another ONNX Runtime: the installed one by another number, and an older one."""

import pytest

from petra_deploy.core.store import digest_tree
from tests.renamed_runtime import write_wheel


def test_steps_are_replayed_with_the_other_version_and_the_same_runtime_makes_the_same_file(
    place, optimized, monkeypatch
) -> None:
    write_wheel(place.folder / "wheels", "1.99.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place.folder / "wheels"))
    done = place.petra("refresh", "first/bundle", "--with", "onnxruntime==1.99.0", "--rounds", 6, "--json")
    assert done.code == 0, done.err
    said = done.json
    assert said["versions"] == {"onnxruntime": "1.99.0"} != said["installed"]
    assert said["replayed"], said["notes"]
    assert said["same_file"], said["notes"]
    judged = said["trial"]["judged"]
    assert (judged["rows"], judged["drop"]["value"]) == ("test", 0.0)
    assert judged["installed"] == judged["tried"]


@pytest.mark.slow  # needs the package index
def test_a_strategy_is_replayed_with_an_older_version_and_judged_on_the_test_rows(place, optimized) -> None:
    before = digest_tree(place.folder / "first" / "bundle")
    done = place.petra("refresh", "first/bundle", "--with", "onnxruntime==1.31.0", "--json", timeout=600)
    assert done.code == 0, done.err
    said = done.json
    assert said["versions"] == {"onnxruntime": "1.31.0"} != said["installed"]
    assert said["advice"] in ("keep", "upgrade", "search again")
    assert said["replayed"], said["notes"]
    judged = said["trial"]["judged"]
    assert judged["rows"] == "test"
    assert judged["below_original"] is not None
    assert said["trial"]["standing"]["promised"] > 1
    assert digest_tree(place.folder / "first" / "bundle") == before
    tried = place.petra("refresh", "first/bundle", "--with", "onnxruntime==1.27.99")
    assert tried.code == 2
    assert "pip finds no onnxruntime 1.27.99" in tried.err
    assert "1.31.0" in tried.err
