"""What can be said of ONNX Runtime's GPU providers without a GPU: nothing goes on without them in silence."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.store import Store
from petra_deploy.worker.backends import _ort_device as device
from petra_deploy.worker.backends import onnxruntime as backend
from tests.unit.worker.nets import CPU, add_graph

GPU = replace(CPU, device="cuda", precisions=("fp32", "fp16"))
WITHOUT = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@WITHOUT
def test_a_gpu_target_needs_the_package_with_cuda(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, (8, 8))
    with pytest.raises(Problem, match="no CUDAExecutionProvider") as problem:
        backend.build(graph, store.path(graph.key) / "model.onnx", GPU, {}, tmp_path)
    assert (problem.value.kind, "onnxruntime-gpu" in problem.value.hint) == ("extra", True)


def test_a_session_that_went_on_without_its_provider_is_refused() -> None:
    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    device.check(Session(), {"provider": "cpu"})
    with pytest.raises(Problem, match="went on without CUDAExecutionProvider"):
        device.check(Session(), {"provider": "cuda"})


def test_on_the_processor_nothing_of_a_gpu_is_asked(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, (8, 8))
    engine = backend.build(graph, store.path(graph.key) / "model.onnx", CPU, {}, tmp_path)
    assert (engine.settings["provider"], engine.settings["cuda_graph"]) == ("cpu", "off")
    assert device.providers(engine.settings) == ["CPUExecutionProvider"]
    assert set(backend.knobs(CPU)) == {"fusions", "io_binding"}
    assert {"cuda_graph", "channels"} <= set(backend.knobs(GPU))
    assert "nodes" not in engine.facts
