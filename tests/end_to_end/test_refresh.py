"""A finished run's bundle under an older ONNX Runtime, fetched from the package index."""

import pytest

from petra_deploy.core.store import digest_tree

pytestmark = pytest.mark.slow  # needs the index


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
