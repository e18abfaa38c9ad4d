"""saliency: |w g| and w^2 F / 2, by their definitions and as torch-pruning has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import MetricSpec
from petra_deploy.testing.case import same
from petra_deploy.worker.model import channels
from petra_deploy.worker.model.importance import Importance, channel_scores
from petra_deploy.worker.training.losses import Output, drawn
from petra_deploy.worker.training.saliency import saliency
from tests.models import CASES, Case


def loss(case: Case, model: nn.Module, samples: Any, rows: slice = slice(None)) -> Tensor:
    inputs = [torch.from_numpy(samples.inputs[name][rows]) for name in case.shapes]
    return F.cross_entropy(model(*inputs)[0], torch.from_numpy(samples.target[rows]))


def test_taylor_is_the_weight_times_the_gradient_against_the_labels(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=32)
    model = case.adapter()
    loss(case, model, tools.train).backward()
    judged = saliency(case.adapter(), "taylor", tools)
    for (name, weight), (_, found) in zip(model.named_parameters(), judged.named_parameters(), strict=True):
        torch.testing.assert_close(found.detach(), (weight * weight.grad).abs().detach(), msg=name)


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradients_pass_recurrent_layers_as_well(importance: Importance, tmp_path: Path) -> None:
    case = CASES["lstm"]()
    judged = saliency(case.adapter(), importance, case.tools(tmp_path, rows=16))
    recurrent = [p for name, p in judged.named_parameters() if "weight_hh" in name]
    assert recurrent
    assert all(p.isfinite().all() and p.max() > 0 for p in recurrent)


def test_hessian_is_half_the_squared_weight_times_the_mean_squared_gradient_of_rows(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=8)
    model = case.adapter()
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(8):
        gradients = torch.autograd.grad(loss(case, model, tools.train, slice(row, row + 1)), list(model.parameters()))
        squares = [s + g.square() for s, g in zip(squares, gradients, strict=True)]
    judged = saliency(case.adapter(), "hessian", tools)
    for weight, total, found in zip(model.parameters(), squares, judged.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), (weight.square() * total / 8 / 2).detach())


def test_scores_of_channels_are_those_of_torch_pruning(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=32)
    model = case.adapter()
    (group,) = (g for g in channels.propose(model, case.tensors(2)).groups if g.name == "2")
    scores = channel_scores(saliency(model, "taylor", tools), group, "taylor", 0)
    graph = torch_pruning.DependencyGraph().build_dependency(case.module, case.tensors(2))
    loss(case, model, tools.train).backward()
    dependants = graph.get_pruning_group(case.module[2], torch_pruning.prune_linear_out_channels, list(range(64)))
    oracle = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    torch.testing.assert_close(scores.float(), oracle(dependants))


def test_without_labels_every_output_counts_and_nothing_is_zero(tmp_path: Path) -> None:
    case = CASES["two_inputs"]()
    bare = case.samples(32, target=False)
    for importance in ("taylor", "hessian"):
        judged = saliency(case.adapter(), importance, case.tools(tmp_path, calibration=bare, train=None))  # type: ignore[arg-type]
        assert all(p.any() for name, p in judged.named_parameters() if name.endswith("weight"))


def test_the_model_stays_as_it_is_and_the_seed_decides(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    model = case.adapter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bare = case.tools(tmp_path, train=None, calibration=case.samples(16, target=False))
    first, second = (list(saliency(model, "taylor", bare).parameters()) for _ in range(2))
    assert all(same(a.detach(), b.detach()) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert saliency(model, "magnitude_l2", bare) is model


def test_drawn_answers_are_as_frequent_as_the_model_holds_them_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, np.log(3.0)]]).expand(20000, 2).float()
    for output, values in [(Output("classes"), logits), (Output("classes", probabilities=True), logits.softmax(-1))]:
        said = drawn(output, values, generator)
        assert said.shape == values.shape
        assert (said.argmax(-1) == 1).float().mean().item() == pytest.approx(0.75, abs=0.02)
    yes = drawn(Output("yes_no", probabilities=True), torch.full((20000, 1), 0.2), generator)
    assert yes.mean().item() == pytest.approx(0.2, abs=0.02)
    numbers = drawn(Output("values", variance=4.0), torch.full((20000, 1), 7.0), generator)
    assert numbers.std().item() == pytest.approx(2.0, abs=0.05)


class Argmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x).argmax(-1),)


def test_outputs_without_a_gradient_are_a_problem(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, metric=MetricSpec(name="agreement"))
    with pytest.raises(Problem) as problem:
        saliency(Argmax().eval(), "taylor", tools)
    assert problem.value.kind == "unsupported"
    assert "magnitude_l2" in problem.value.hint
