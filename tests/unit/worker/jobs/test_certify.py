from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import cpus, machine, metrics
from petra_deploy.core.job import Build, Certify
from petra_deploy.core.outcome import Engine, Failed, Graph
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import Split
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.artifact import integers
from petra_deploy.worker.backends import onnxruntime as backend
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs import certify
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import quantize_dynamic, quantize_inc, quantize_ort
from tests.models import CASES
from tests.unit.worker.nets import CPU, add_graph
from tests.unit.worker.techniques.graphs import exported, inside

VNNI, AVX2 = ("avx2", "avx512", "vnni"), ("avx2",)


def engine(store: Store, folder: Path, name: str, technique: object = quantize_ort, **options: object) -> Engine:
    """A case of tests/models.py, quantized (in eight bits, if nothing else is said) and built."""
    case = CASES[name]()
    tools = case.tools(inside(folder, "scratch"), rows=64)
    applied = technique.apply(exported(case, folder), technique.Options(**options), tools)  # type: ignore[attr-defined]
    key = store.add(lambda entry: (entry / "model.onnx").write_bytes(Path(applied.model).read_bytes()))
    graph = Graph(key=key, signature=case.signature(), bytes=1)
    return Inline(store).must(Build(graph=graph, target=CPU))


def job(store: Store, one: Engine, name: str, instructions: tuple[str, ...] = VNNI, allowed: float = 0.5) -> Certify:
    samples = CASES[name]().samples(48, target=False)
    split = Split(key=store.add(samples.save), rows=48, labelled=False)
    return Certify(
        engine=one, split=split, metric=metrics.SPECS["cosine"], instructions=instructions, allowed_points=allowed
    )


@pytest.mark.parametrize(
    ("name", "technique"), [("cnn", quantize_ort), ("mlp", quantize_dynamic), ("hand_encoder", quantize_dynamic)]
)
def test_the_whole_graph_answers_as_the_engine_does_on_this_processor(
    name: str, technique: object, store: Store, tmp_path: Path
) -> None:
    one = engine(store, tmp_path, name, technique)
    asked = job(store, one, name)
    samples, context = Samples.open(store.path(asked.split.key)), Context(store, print)
    model = certify._fused(store.path(one.key) / "model.onnx", one.settings)
    risky = [layer for layer in integers.find(model) if layer.risky]
    saturates = cpus.kind(machine.instructions()) in cpus.SATURATING
    ours, counts = certify._outputs(asked, model, risky, samples, saturate=saturates)
    with backend.open(store.path(one.key), one.settings) as runner:
        theirs = certify.outputs_of(runner.run, one.signature, samples)
    for output, values in theirs.items():
        np.testing.assert_allclose(ours[output], values, rtol=0, atol=1e-6)  # float operators may round otherwise
    certified = certify.run(asked, context)
    assert bool(counts) == saturates
    assert sum(certified.cpus["avx2"].saturated.values()) > 0
    assert certified.cpus["avx2"].largest_difference > 1e-3


def test_eight_bits_hold_where_sums_are_exact_and_elsewhere_only_within_what_is_allowed(
    store: Store, tmp_path: Path
) -> None:
    one = engine(store, tmp_path, "cnn")
    assert one.facts["may_saturate"] == 4
    run = Inline(store)
    strict = run.must(job(store, one, "cnn", allowed=0.0))
    assert strict.holds_on == cpus.EXACT
    fall = strict.cpus["avx2"].drop_points
    assert fall is not None
    assert fall > 0
    assert strict.rows == 48
    assert f"falls by {fall:.2f} points" in strict.cpus["avx512"].why
    assert run.must(job(store, one, "cnn", allowed=1.01 * fall)).holds_on == cpus.CPUS
    there = run.must(job(store, one, "cnn", AVX2, allowed=0.0))  # measured where it saturates: exact sums are better
    assert there.holds_on == cpus.CPUS


def test_seven_bits_hold_everywhere_by_a_bound(store: Store, tmp_path: Path) -> None:
    one = engine(store, tmp_path, "cnn", reduce_range=True)
    certified = Inline(store).must(job(store, one, "cnn", allowed=0.0))
    assert (one.facts["may_saturate"], certified.rows, certified.holds_on) == (0, 0, cpus.CPUS)


def test_a_layer_that_is_not_computed_is_unknown_elsewhere(store: Store, tmp_path: Path) -> None:
    one = engine(store, tmp_path, "lstm", quantize_dynamic)
    certified = Inline(store).must(job(store, one, "lstm"))
    assert certified.holds_on == cpus.EXACT
    assert "DynamicQuantizeLSTM is not computed here" in certified.cpus["avx2"].why
    assert certified.cpus["avx2"].drop_points is None
    assert Inline(store).must(job(store, one, "lstm", AVX2)).holds_on == cpus.SATURATING


def test_floats_hold_everywhere_and_another_runtime_is_not_known(store: Store) -> None:
    one = Inline(store).must(Build(graph=add_graph(store), target=CPU))
    asked = job(store, one, "cnn")
    assert Inline(store).must(asked).holds_on == cpus.CPUS
    refused = Inline(store)(replace(asked, engine=replace(one, backend="openvino")))
    assert isinstance(refused, Failed)
    assert "openvino" in refused.reason


def test_lstm_layers_of_seven_bits_cannot_saturate(store: Store, tmp_path: Path) -> None:
    case, folder = CASES["lstm"](), inside(tmp_path, "dynamic")
    assert engine(store, folder, "lstm", quantize_dynamic, reduce_range=True).facts["may_saturate"] == 0
    applied = quantize_inc.apply(case.adapter(), quantize_inc.Options(reduce_range=True), case.tools(tmp_path))
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "inc.onnx")
    key = store.add(lambda entry: (entry / "model.onnx").write_bytes((tmp_path / "inc.onnx").read_bytes()))
    one = Inline(store).must(Build(graph=Graph(key=key, signature=case.signature(), bytes=1), target=CPU))
    assert "DynamicQuantizeLSTM" in one.facts["operators"]  # type: ignore[operator]
    assert one.facts["may_saturate"] == 0


@pytest.mark.parametrize("technique", [quantize_ort, quantize_dynamic, quantize_inc])
@pytest.mark.parametrize(("target", "seven"), [("cpu-avx2", True), ("cpu-avx512", True), ("cpu-vnni", False)])
def test_targets_without_vnni_take_seven_bits(technique: object, target: str, seven: bool) -> None:
    fixed = technique.fixed(CASES["mlp"]().layout(), machine.resolve(target))  # type: ignore[attr-defined]
    assert fixed["reduce_range"] is seven
