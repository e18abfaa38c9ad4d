from concurrent.futures import ThreadPoolExecutor
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

RNG = np.random.default_rng(0)


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


def test_a_fused_skip_connection_is_named_as_worth_another_setting(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_SHORT_US", 0.0)  # no call is
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
            assert ("SkipLayerNormFusion" in str(engine.settings["disabled_optimizers"])) is (
                choice == "no_skip_layer_norm"
            )


def test_binding_is_named_as_worth_a_try_where_a_call_is_short(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_SHORT_US", 1e9)  # every call is
    assert build(store, add_graph(store), tmp_path).facts["alternatives"] == {"io_binding": "on"}


def test_a_long_call_is_made_once_more_to_see_that_it_is_not_short(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = backend.Session.run
    monkeypatch.setattr(backend.Session, "run", lambda self, feeds: calls.append(1) or run(self, feeds))
    monkeypatch.setattr(backend, "_SHORT_US", 0.0)  # every call is long
    build(store, add_graph(store), tmp_path)
    assert len(calls) == 3  # one row, two rows, one row again


def test_bound_calls_answer_as_ordinary_ones_with_arrays_of_the_callers_own(store: Store, tmp_path: Path) -> None:
    engine = build(store, add_graph(store), tmp_path, io_binding="on")
    images = [RNG.standard_normal((rows, 3, SIDE, SIDE)).astype(np.float32) for rows in (1, 3, 1, 2, 3)]
    with backend.open(tmp_path, engine.settings) as bound, backend.open(tmp_path, {"threads": 1}) as plain:
        answers = [bound.run({"image": image})[0] for image in images]
        for image, answer in zip(images, answers, strict=True):  # none was overwritten by a later call
            np.testing.assert_array_equal(answer, plain.run({"image": image})[0])
        turned = np.asfortranarray(images[1])
        np.testing.assert_array_equal(bound.run({"image": turned})[0], answers[1])
        with pytest.raises(Problem, match="cannot run"):
            bound.run({"image": images[0].astype(np.float64)})
        many = [np.ones((rows, 3, SIDE, SIDE), np.float32) for rows in range(1, 25)]  # more shapes than have buffers
        assert [len(bound.run({"image": image})[0]) for image in many] == list(range(1, 25))


def test_bound_calls_of_several_threads_do_not_mix(store: Store, tmp_path: Path) -> None:
    engine = build(store, add_graph(store, (8, 8)), tmp_path, io_binding="on")
    images = [RNG.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32) for _ in range(8)]
    with backend.open(tmp_path, engine.settings) as bound, ThreadPoolExecutor(8) as pool:
        expected = [bound.run({"image": image})[0] for image in images]
        found = list(pool.map(lambda n: bound.run({"image": images[n % 8]})[0], range(400)))
    for number, answer in enumerate(found):
        np.testing.assert_array_equal(answer, expected[number % 8])


def test_outputs_whose_size_the_values_decide_cannot_be_bound(store: Store, tmp_path: Path) -> None:
    doors = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])]
    outs = [helper.make_tensor_value_info("where", TensorProto.INT64, [1, "found"])]
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["where"])], "g", doors, outs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    key = store.add(lambda folder: onnx.save(model, folder / "model.onnx"))
    x = TensorSpec(name="x", dtype="float32", shape=("batch",))
    where = TensorSpec(name="where", dtype="int64", shape=(1, "found"))
    graph = Graph(key=key, signature=Signature(inputs=(x,), outputs=(where,)), bytes=1)
    assert "alternatives" not in build(store, graph, tmp_path).facts
    with pytest.raises(Problem, match="'where' has a dimension 'found' that no input has") as caught:
        build(store, graph, tmp_path, io_binding="on")
    assert caught.value.kind == "unsupported"


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
