"""sparsify: exactly the zeros that its pattern says, the largest weights kept, through training and quantization."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core import machine
from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Fidelity, Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.artifact.zeros import two_of_four
from petra_deploy.worker.techniques import prune, recover, sparsify
from tests.models import CASES, Case

TWO = sparsify.Options()


def zeros_in_fours(weight: np.ndarray) -> set[int]:
    """How many zeros the groups of four inputs have; `weight` is (outputs, inputs, ...)."""
    return set((np.moveaxis(weight, 1, -1).reshape(-1, 4) == 0).sum(1).tolist())


@pytest.mark.parametrize("family", ["cnn", "torch_encoder", "hand_encoder", "mlp", "inception"])
def test_two_of_every_four_inputs_are_zero_and_the_larger_two_are_as_they_were(family: str, tmp_path: Path) -> None:
    case = CASES[family]()
    model = case.adapter()
    applied = sparsify.apply(model, TWO, case.tools(tmp_path))
    assert applied.facts["layers"]
    before, after = dict(model.named_parameters()), dict(applied.model.named_parameters())
    for path in applied.facts["layers"]:
        names = [f"inner.{path}.{name}" for name in ("weight", "in_proj_weight")]
        name = next(name for name in names if name in after)
        old, new = before[name].detach(), after[name].detach()
        assert zeros_in_fours(new.numpy()) == {2}
        groups = old.abs().movedim(1, -1).reshape(-1, 4)
        stayed = (new != 0).movedim(1, -1).reshape(-1, 4)
        assert (groups.masked_fill(~stayed, 9).amin(1) >= groups.masked_fill(stayed, 0).amax(1)).all()
        assert torch.equal(new[new != 0], old[new != 0])


def test_the_share_of_zeros_is_what_was_asked_and_small_layers_come_last(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    options = sparsify.Options(pattern="unstructured", sparsity=0.8, share=0.34)
    facts = sparsify.apply(case.adapter(), options, case.tools(tmp_path)).facts
    assert isinstance(facts["layers"], dict)
    ((name, (count, zero)),) = facts["layers"].items()
    linear = {n: m.weight.numel() for n, m in case.module.named_modules() if isinstance(m, nn.Linear)}
    assert count == linear[name] == max(linear.values())
    assert zero == count - round(0.2 * count)


@pytest.mark.parametrize("quantizer", ["quantize_ort", "quantize_inc", "quantize_dynamic"])
def test_the_zeros_outlive_training_and_quantization(quantizer: str, tmp_path: Path) -> None:
    case, store = CASES["mlp"](), Store(tmp_path)
    steps = (
        Step(technique="sparsify", options={}),
        Step(technique="recover", options={"epochs": 2, "lr": 0.01}),
        Step(technique=quantizer, options={}),
    )
    graph = Inline(store).must(
        Transform(workload=case.workload(store), strategy=Strategy(steps=steps), fidelity=Fidelity())
    )
    path = store.path(graph.key) / "model.onnx"
    integers = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
    assert {array.dtype for array in integers} == {np.dtype(np.int8)}
    for array in integers:
        assert any(min(zeros_in_fours(a)) >= 2 for a in (array, array.T) if a.shape[1] % 4 == 0)
    assert two_of_four(path)


def test_training_moves_what_is_left_and_nothing_else(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    sparse = sparsify.apply(case.adapter(), TWO, case.tools(tmp_path)).model
    trained = recover.apply(sparse, recover.Options(epochs=2, lr=0.01), case.tools(tmp_path)).model
    pairs = [
        (dict(sparse.named_parameters())[name], weight)
        for name, weight in trained.named_parameters()
        if weight.dim() > 1 and weight.shape[1] % 4 == 0
    ]
    assert pairs
    for before, after in pairs:
        assert not torch.equal(before, after)
        assert torch.equal(before == 0, after == 0)
    assert sparse.state_dict().keys() == case.adapter().state_dict().keys()


def test_a_layer_that_is_cut_afterwards_is_named(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    sparse = sparsify.apply(case.adapter(), TWO, case.tools(tmp_path)).model
    group = case.layout().of_kind("channels")[0].name
    cut = prune.apply(sparse, prune.Options(ratios={group: 0.5}), case.tools(tmp_path)).model
    with pytest.raises(Problem, match="was cut after"):
        recover.apply(cut, recover.Options(epochs=1), case.tools(tmp_path))


def test_tied_and_computed_weights_stay_as_they_are(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.out.weight = self.embed.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.normed(self.embed(x)).mean(1))

    case = Case("tied", Tied().eval(), {"x": (6,)}, {"x": 20})
    with pytest.raises(Problem, match="weights are its own"):
        sparsify.apply(case.adapter(), TWO, case.tools(tmp_path))


def test_it_says_which_targets_it_is_for() -> None:
    layout = CASES["mlp"]().layout()
    assert "does not skip zeros" in sparsify.obstacles(layout, machine.resolve("t4"))[0]
    assert sparsify.obstacles(layout, machine.resolve("l4")) == ()
    assert sparsify.fixed(layout, machine.resolve("l4")) == {"pattern": "2:4"}
    assert sparsify.fixed(layout, machine.resolve("cpu")) == {"pattern": "unstructured"}


def test_a_dense_graph_is_no_sparse_one(tmp_path: Path) -> None:
    case, store = CASES["mlp"](), Store(tmp_path)
    graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy()))
    assert not two_of_four(store.path(graph.key) / "model.onnx")
