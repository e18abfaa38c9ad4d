import subprocess
import sys

import pytest

from petra_deploy.core.job import Build
from petra_deploy.core.outcome import Failed
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.testing.inline import Inline
from tests.unit.worker.nets import CPU, add_graph


def test_an_engine_is_published_with_the_settings_asked_for(store: Store) -> None:
    graph = add_graph(store)
    engine = Inline(store).must(Build(graph=graph, target=CPU, settings={"threads": 2}))
    assert (engine.graph, engine.backend, engine.settings["threads"]) == (graph.key, "onnxruntime", 2)
    assert (store.path(engine.key) / "model.onnx").stat().st_size == engine.bytes
    assert not list((store.root / "tmp").iterdir())


def test_a_target_that_the_runtime_cannot_serve_is_a_failure_with_its_reason(store: Store) -> None:
    failed = Inline(store)(Build(graph=add_graph(store), target=Target(name="gpu", runtime="openvino", device="cuda")))
    assert isinstance(failed, Failed)
    assert failed.kind == "unsupported"
    assert "cannot serve gpu" in failed.reason


@pytest.mark.parametrize(
    "module",
    [
        "petra_deploy.worker.jobs.build", "petra_deploy.worker.jobs.measure", "petra_deploy.worker.jobs.score",
        "petra_deploy.worker.backends.onnxruntime", "petra_deploy.worker.measure.memory",
    ],
)  # fmt: skip
def test_what_builds_measures_and_scores_never_imports_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
