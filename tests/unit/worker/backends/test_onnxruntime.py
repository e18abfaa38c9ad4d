from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.errors import BadInput, Problem
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.store import Store
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.worker.backends import onnxruntime as backend
from tests.unit.worker.nets import CPU, SIDE, add_graph, signature


def build(store: Store, graph: Graph, folder: Path, **settings: object) -> Engine:
    return backend.build(graph, store.path(graph.key) / "model.onnx", CPU, settings, folder)


def test_the_engine_is_the_graph_itself_with_settings_that_open_it_again(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, (8, 8))
    engine = build(store, graph, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == (store.path(graph.key) / "model.onnx").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.onnx"]
    assert engine.settings["threads"] == CPU.threads
    assert engine.settings["allow_spinning"] is False
    assert engine.versions["onnxruntime"]
    assert engine.bytes == graph.bytes
    feeds = {"image": np.ones((3, 3, SIDE, SIDE), np.float32)}
    with backend.open(tmp_path, engine.settings) as first, backend.open(tmp_path, engine.settings, seed=9) as second:
        np.testing.assert_array_equal(first.run(feeds)[0], second.run(feeds)[0])
        first.close()


def test_the_facts_count_the_operators_that_the_runtime_made(store: Store, tmp_path: Path) -> None:
    operators = build(store, add_graph(store, (8, 8)), tmp_path).facts["operators"]
    assert isinstance(operators, dict)
    assert operators["Conv"] == 2
    assert "Relu" not in operators  # fused
    (tmp_path / "plain").mkdir()
    plain = build(store, add_graph(store, (8, 8)), tmp_path / "plain", optimization="none").facts["operators"]
    assert isinstance(plain, dict)
    assert plain["Relu"] == 2


def test_a_fused_skip_connection_is_named_as_worth_another_setting(store: Store, tmp_path: Path) -> None:
    assert "alternatives" not in build(store, add_graph(store), tmp_path).facts
    wide = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8]) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gamma", "beta"], ["z"], axis=-1),
    ]
    weights = [numpy_helper.from_array(np.ones(8, np.float32), name) for name in ("gamma", "beta")]
    graph = helper.make_graph(nodes, "g", wide[:2], wide[2:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    key = store.add(lambda folder: onnx.save(model, folder / "model.onnx"))
    x, y, z = (TensorSpec(name=name, dtype="float32", shape=("batch", 3, 8)) for name in ("x", "y", "z"))
    (tmp_path / "fused").mkdir()
    found = build(store, Graph(key=key, signature=Signature(inputs=(x, y), outputs=(z,)), bytes=1), tmp_path / "fused")
    assert found.facts["alternatives"] == {"fusions": "no_skip_layer_norm"}


def test_every_value_of_every_knob_builds(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store)
    for name, knob in backend.knobs(CPU).items():
        for choice in knob.choices:
            folder = tmp_path / f"{name}-{choice}"
            folder.mkdir()
            engine = build(store, graph, folder, **{name: choice})
            assert engine.settings[name] == choice
            assert ("SkipLayerNormFusion" in str(engine.settings["disabled_optimizers"])) is (choice != "default")


def test_a_fixed_batch_is_run_at_that_size(store: Store, tmp_path: Path) -> None:
    engine = build(store, add_graph(store, batch=4), tmp_path)
    with backend.open(tmp_path, engine.settings) as runner, pytest.raises(Problem, match="cannot run"):
        runner.run({"image": np.ones((3, 3, SIDE, SIDE), np.float32)})


def test_an_unknown_or_wrong_setting_is_named(store: Store, tmp_path: Path) -> None:
    for settings in ({"thread": 1}, {"threads": 0}, {"optimization": "most"}):
        with pytest.raises(BadInput, match=next(iter(settings))):
            build(store, add_graph(store), tmp_path, **settings)


def test_a_graph_that_the_runtime_refuses_is_unsupported_with_its_reason(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store, last="NoSuchOperator")
    with pytest.raises(Problem, match="NoSuchOperator") as caught:
        build(store, graph, tmp_path)
    assert caught.value.kind == "unsupported"
    (tmp_path / "torn.onnx").write_bytes(b"not a model")
    with pytest.raises(Problem, match="refuses the model"):
        backend.build(graph, tmp_path / "torn.onnx", CPU, {}, tmp_path)


def test_a_graph_with_other_doors_than_its_signature_is_a_mismatch(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store)
    other = signature().outputs[0].__class__(name="scores", dtype="float32", shape=("batch", 4))
    wrong = Graph(
        key=graph.key, bytes=graph.bytes, signature=type(graph.signature)(inputs=signature().inputs, outputs=(other,))
    )
    with pytest.raises(Problem, match="outputs are logits, not scores") as caught:
        build(store, wrong, tmp_path)
    assert caught.value.kind == "mismatch"
