import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import machine
from petra_deploy.core.errors import BadInput, Problem
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.backends import onnxruntime
from petra_deploy.worker.backends import openvino as backend
from tests.unit.worker.nets import CPU, SIDE, add_graph, signature

if not machine.installed("openvino"):
    pytest.skip("openvino is not installed", allow_module_level=True)
OPENVINO = replace(CPU, runtime="openvino", precisions=("fp32", "int8"))


def build(store: Store, graph: Graph, folder: Path, target: Target = OPENVINO, **settings: object) -> Engine:
    return backend.build(graph, store.path(graph.key) / "model.onnx", target, settings, folder)


def test_the_engine_is_the_graph_itself_and_agrees_with_onnxruntime(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, (8, 8))
    engine = build(store, graph, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.onnx"]
    assert engine.settings == {"threads": CPU.threads, "precision": "f32"}
    assert engine.bytes == graph.bytes
    generator = np.random.default_rng(0)
    feeds = {"image": generator.random((3, 3, SIDE, SIDE), np.float32)}
    with backend.open(tmp_path, engine.settings) as ours, onnxruntime.open(tmp_path, {"threads": 1}) as theirs:
        np.testing.assert_allclose(ours.run(feeds)[0], theirs.run(feeds)[0], rtol=1e-4, atol=1e-5)


def test_outputs_stay_as_they_were_when_the_engine_runs_again(store: Store, tmp_path: Path) -> None:
    engine = build(store, add_graph(store), tmp_path)
    with backend.open(tmp_path, engine.settings) as runner:
        (first,) = runner.run({"image": np.ones((2, 3, SIDE, SIDE), np.float32), "unknown": np.ones(1)})
        kept = first.copy()
        frozen = np.zeros((2, 3, SIDE, SIDE), np.float32)
        frozen.setflags(write=False)
        (second,) = runner.run({"image": frozen})
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_the_facts_count_operators_and_the_precision_they_are_computed_in(store: Store, tmp_path: Path) -> None:
    facts = build(store, add_graph(store, (8, 8)), tmp_path).facts
    operators, precisions = facts["operators"], facts["precisions"]
    assert isinstance(operators, dict)
    assert isinstance(precisions, dict)
    assert operators["Convolution"] == 2
    assert "Relu" not in operators  # fused
    assert precisions["f32"]["Convolution"] == 2


def test_bf16_is_for_targets_that_have_it(store: Store, tmp_path: Path) -> None:
    tiles = replace(OPENVINO, precisions=("fp32", "bf16", "int8"), instructions=("avx2", "avx512", "vnni", "amx"))
    assert backend.knobs(tiles)["precision"].choices == ("f32", "bf16")
    assert backend.knobs(OPENVINO) == {}
    assert backend.knobs(replace(tiles, instructions=("avx2",))) == {}
    with pytest.raises(Problem, match="has no bf16") as caught:
        build(store, add_graph(store), tmp_path, precision="bf16")
    assert caught.value.kind == "unsupported"


def test_an_unknown_or_wrong_setting_is_named(store: Store, tmp_path: Path) -> None:
    for settings in ({"thread": 1}, {"threads": 0}, {"precision": "f8"}):
        with pytest.raises(BadInput, match=next(iter(settings))):
            build(store, add_graph(store), tmp_path, **settings)


def test_what_openvino_refuses_is_unsupported_in_one_sentence(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, last="NoSuchOperator")
    with pytest.raises(Problem, match="No conversion rule found for operations: NoSuchOperator") as caught:
        build(store, graph, tmp_path)
    assert caught.value.kind == "unsupported"
    assert "\n" not in caught.value.reason
    (tmp_path / "torn.onnx").write_bytes(b"not a model")
    with pytest.raises(Problem, match="Unable to read the model"):
        backend.build(graph, tmp_path / "torn.onnx", OPENVINO, {}, tmp_path)


@pytest.mark.parametrize(
    "values", [np.ones((2, 3, SIDE, SIDE)), np.ones((2, 4, SIDE, SIDE), np.float32), np.ones(3, np.float32), None]
)
def test_feeds_that_do_not_fit_are_unsupported(store: Store, tmp_path: Path, values: np.ndarray | None) -> None:
    engine = build(store, add_graph(store), tmp_path)
    with backend.open(tmp_path, engine.settings) as runner, pytest.raises(Problem, match="cannot run") as caught:
        runner.run({} if values is None else {"image": values})
    assert caught.value.kind == "unsupported"


def test_a_graph_with_other_doors_than_its_signature_is_a_mismatch(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store)
    other = TensorSpec(name="scores", dtype="float32", shape=("batch", 4))
    wrong = replace(graph, signature=replace(graph.signature, outputs=(other,)))
    with pytest.raises(Problem, match="outputs are logits, not scores") as caught:
        build(store, wrong, tmp_path)
    assert caught.value.kind == "mismatch"
    assert signature().outputs[0].name == "logits"


def test_without_the_package_it_names_the_extra(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Problem, match="OpenVINO is not installed") as caught:
        build(store, add_graph(store), tmp_path)
    assert caught.value.kind == "extra"
    assert "petra-deploy[openvino]" in caught.value.hint


OPENED = """
import faulthandler, os, signal, sys, time
from pathlib import Path
faulthandler.enable()
from petra_deploy.worker.backends import openvino as backend
first = backend.open(Path(sys.argv[1]), {"threads": 1})
second = backend.open(Path(sys.argv[1]), {"threads": 1})
first.close()
second.close()
del first, second
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_no_telemetry_is_loaded_and_ctrl_c_is_still_an_exception(store: Store, tmp_path: Path) -> None:
    build(store, add_graph(store), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_it_serves_the_processor_only() -> None:
    assert backend.obstacles(OPENVINO) == ()
    assert backend.obstacles(Target(name="g", runtime="openvino", device="cuda"))
