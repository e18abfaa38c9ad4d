"""Transform: from a strategy to a graph in the store, through the real steps."""

import copy
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import Tensor, nn

from petra_deploy.core import registry
from petra_deploy.core.errors import BadInput
from petra_deploy.core.extension import Applied, Data, Phase, Tools
from petra_deploy.core.job import Transform
from petra_deploy.core.outcome import Failed, Graph
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Fidelity, Step, Strategy
from petra_deploy.core.workload import Workload
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.model import adapter
from petra_deploy.worker.training import recovery
from tests.models import CASES
from tests.unit.worker.techniques.graphs import exported

RECOVER = Step(technique="recover", options={"epochs": 1.0})
INC = Step(technique="quantize_inc", options={"reduce_range": True})
ORT = Step(technique="quantize_ort", options={"reduce_range": True})


@pytest.fixture
def run(store: Store) -> Inline:
    return Inline(store)


@pytest.fixture
def workload(store: Store) -> Workload:
    return CASES["cnn"]().workload(store)


def test_the_empty_strategy_is_the_model_as_it_came(run: Inline, workload: Workload) -> None:
    graph = run.must(Transform(workload=workload, strategy=Strategy()))
    assert graph.signature == workload.signature
    assert graph.bytes == (run.store.path(graph.key) / "model.onnx").stat().st_size
    assert graph.facts["opset"] == 20
    assert graph.facts["parity"]["module"]["output"]["cosine"] > 0.99999  # type: ignore[index]


def test_steps_run_module_first_whatever_their_order_and_each_leaves_its_facts(run: Inline, workload: Workload) -> None:
    graph = run.must(Transform(workload=workload, strategy=Strategy(steps=(ORT, RECOVER))))
    assert graph.facts["quantize_ort"]["int8"]["Conv"] == 3  # type: ignore[index]
    assert graph.facts["recover"]["epochs"] == 1.0  # type: ignore[index]
    assert set(graph.facts["seconds"]) == {"recover", "export", "quantize_ort"}  # type: ignore[arg-type]


def test_a_quantized_graph_says_how_far_it_is_from_the_float_model(run: Inline, workload: Workload) -> None:
    graph = run.must(Transform(workload=workload, strategy=Strategy(steps=(INC,))))
    parity = graph.facts["parity"]
    assert 0.95 < parity["float"]["output"]["cosine"] < 1.0  # type: ignore[index]
    assert graph.bytes < 0.5 * run.must(Transform(workload=workload, strategy=Strategy())).bytes


def test_what_is_kept_has_short_names_but_for_doors_and_layers(run: Inline, workload: Workload) -> None:
    graph = run.must(Transform(workload=workload, strategy=Strategy(steps=(INC,))))
    kept = onnx.load(run.store.path(graph.key) / "model.onnx").graph
    assert not kept.value_info
    outputs = {spec.name for spec in graph.signature.outputs}
    made = {name for node in kept.node for name in node.output} - outputs
    assert made
    assert all(re.fullmatch(r"t\d+", name) for name in made)
    assert graph.bytes == (run.store.path(graph.key) / "model.onnx").stat().st_size


@pytest.mark.parametrize(("factor", "same"), [(2.0, True), (2.5, False)])
def test_a_rewrite_of_the_module_is_held_to_its_answers(
    factor: float, same: bool, run: Inline, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(model: nn.Module, options: Data, tools: Tools) -> Applied:
        small = copy.deepcopy(model)
        head = adapter.submodule(small, "head")
        head.weight.data *= 2.0  # type: ignore[operator, union-attr]
        head.bias.data *= 2.0  # type: ignore[operator, union-attr]
        adapter.replace(small, "head", nn.Sequential(head, Divided(factor)))
        return Applied(small, {"layers": 1})

    rewrite = SimpleNamespace(PHASE=Phase.REWRITE, ACTS_ON="module", Options=NoOptions, apply=doubled)
    real = registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: rewrite if name == "doubled" else real(kind, name))
    steps = (Step(technique="doubled", options={}), ORT)
    found = run(Transform(workload=workload, strategy=Strategy(steps=steps)))
    if same:
        assert found.value.facts["rewritten"]["output"]["error"] < 1e-5  # type: ignore[union-attr]
    else:
        assert isinstance(found, Failed)
        assert found.kind == "mismatch"
        assert "no longer the same after doubled" in found.reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions(Data):
    pass


class Divided(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by


def test_strategies_that_share_their_first_steps_train_once(run: Inline, workload: Workload) -> None:
    first = run.must(Transform(workload=workload, strategy=Strategy(steps=(RECOVER,))))
    again = run.must(Transform(workload=workload, strategy=Strategy(steps=(RECOVER, ORT))))
    assert "starts from 1 kept step" in run.lines
    assert "recover" not in again.facts["seconds"]  # type: ignore[operator]
    assert again.facts["recover"] == first.facts["recover"]
    assert run.must(Transform(workload=workload, strategy=Strategy(steps=(RECOVER,)))).key == first.key


def test_a_second_training_goes_on_from_the_first(run: Inline, workload: Workload) -> None:
    first = run.must(Transform(workload=workload, strategy=Strategy(steps=(RECOVER,))))
    more = dataclasses.replace(RECOVER, options={**RECOVER.options, "lr": 1e-4})
    both = run.must(Transform(workload=workload, strategy=Strategy(steps=(RECOVER, more))))
    assert "starts from 1 kept step" in run.lines
    assert both.facts["recover"] == first.facts["recover"]
    assert both.facts["recover 2"]["steps"] > 0  # type: ignore[index]
    assert both.key != first.key


def test_the_originals_answers_to_mixtures_are_shared(
    run: Inline, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_mixtures(lr: float) -> Transform:
        step = dataclasses.replace(RECOVER, options={"epochs": 1, "lr": lr, "augment": 1})
        return Transform(workload=workload, strategy=Strategy(steps=(step,)))

    run.must(with_mixtures(1e-3))
    monkeypatch.setattr(recovery, "answers", lambda *_, **__: pytest.fail("asked again"))
    assert run.must(with_mixtures(2e-3)).facts["recover"]["mixed_rows"] > 0  # type: ignore[index]


@pytest.mark.parametrize(
    "other", [{"strategy": Strategy(steps=(RECOVER,), seed=1)}, {"fidelity": Fidelity(epochs=0.5)}]
)
def test_another_seed_or_effort_is_another_module(run: Inline, workload: Workload, other: dict[str, object]) -> None:
    job = Transform(workload=workload, strategy=Strategy(steps=(RECOVER,)))
    first = run.must(job)
    assert run.must(dataclasses.replace(job, **other)).key != first.key  # type: ignore[arg-type]


def test_a_kept_module_that_is_gone_is_made_again(run: Inline, workload: Workload) -> None:
    job = Transform(workload=workload, strategy=Strategy(steps=(RECOVER,)))
    first = run.must(job)
    for kept in run.store.root.glob("entries/*/module.pkl"):
        kept.write_bytes(b"torn")
    assert run.must(job).key == first.key


def test_a_model_that_came_as_a_graph_gets_graph_steps_only(run: Inline, workload: Workload) -> None:
    onnx_workload = _as_graph(run, workload)
    graph = run.must(Transform(workload=onnx_workload, strategy=Strategy(steps=(ORT,))))
    assert graph.facts["quantize_ort"]["int8"]["Conv"] == 3  # type: ignore[index]
    assert _answers(run, graph, workload).shape == (4, 10)
    refused = run(Transform(workload=onnx_workload, strategy=Strategy(steps=(RECOVER,))))
    assert isinstance(refused, Failed)
    assert refused.kind == "unsupported"
    assert "recover" in refused.reason


def test_the_empty_strategy_on_a_graph_is_that_graph(run: Inline, workload: Workload) -> None:
    original = run.must(Transform(workload=workload, strategy=Strategy()))
    graph = run.must(Transform(workload=_as_graph(run, workload), strategy=Strategy()))
    np.testing.assert_allclose(_answers(run, graph, workload), _answers(run, original, workload), atol=1e-5)


def test_a_step_that_cannot_be_done_fails_the_job(run: Inline, store: Store) -> None:
    gru = CASES["gru_both_ways"]().workload(store)
    failed = run(Transform(workload=gru, strategy=Strategy(steps=(INC,))))
    assert isinstance(failed, Failed)
    assert failed.kind == "unsupported"
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("step", "word"),
    [(Step(technique="shrimp"), "shrimp"), (Step(technique="quantize_inc", options={"algorithm": "kl"}), "algorithm"),
     (Step(technique="quantize_inc", options={"calibration_rows": 0}), "calibration_rows")],
)  # fmt: skip
def test_unknown_techniques_and_options_are_named(run: Inline, workload: Workload, step: Step, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        run(Transform(workload=workload, strategy=Strategy(steps=(step,))))


def _as_graph(run: Inline, workload: Workload) -> Workload:
    """The same model as if it had come as an ONNX file."""
    key = run.store.add(lambda folder: exported(CASES["cnn"](), folder).rename(folder / "model.onnx"))
    return dataclasses.replace(workload, model=key, form="onnx", train=None)


def _answers(run: Inline, graph: Graph, workload: Workload) -> np.ndarray:
    path: Path = run.store.path(graph.key) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = Samples.open(run.store.path(workload.selection.key)).first(4)
    answer: np.ndarray = session.run(None, {name: np.asarray(values) for name, values in rows.inputs.items()})[0]
    return answer
