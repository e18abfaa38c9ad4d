"""LoRA: unchanged at first, trained by factors alone, merged exactly, and nothing of it left."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.training import lora
from petra_deploy.worker.training.recovery import Recipe, recovered
from tests.models import CASES

NAMES = ["cnn", "inception", "lstm", "gru_both_ways", "rnn", "torch_encoder", "hand_encoder", "mlp", "shared", "events"]


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return list(model(*inputs))


def shape(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_merged_is_unmerged_and_as_many_parameters_as_before(name: str) -> None:
    case = CASES[name]()
    model, inputs = case.adapter(), case.tensors(3)
    before, first = shape(model), answers(model, inputs)
    with lora.added(model, 2, seed=0) as adapters:
        assert adapters.weights
        for a, b in zip(answers(model, inputs), first, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        changes = [m for m in model.modules() if isinstance(m, lora.LowRank)]
        with torch.no_grad():
            for change in changes:
                change.up += 0.1 * torch.randn(change.up.shape, generator=torch.Generator().manual_seed(1))
        unmerged = answers(model, inputs)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(unmerged, first, strict=True))
    for a, b in zip(answers(model, inputs), unmerged, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    assert shape(model) == before
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert {type(m) for m in model.modules()} == {type(m) for m in case.adapter().modules()}


def test_the_change_of_a_weight_has_the_rank_asked_for(tmp_path: Path) -> None:
    case = CASES["lstm"]()
    before = case.adapter()
    after, facts = recovered(before, Recipe(epochs=2, lr=0.01, labels=1.0, lora_rank=2), case.tools(tmp_path, rows=64))
    assert facts["lora_weights"] == 5  # two layers of two weights, and the head
    for name, old in before.named_parameters():
        new = dict(after.named_parameters())[name]
        if "weight_" in name:
            assert torch.linalg.matrix_rank(new - old, rtol=1e-4) <= 2
        assert not torch.equal(new, old)
        assert new.requires_grad


def test_only_factors_and_small_parameters_are_trained() -> None:
    model = CASES["mlp"]().adapter()
    with lora.added(model, 4, seed=0) as adapters:
        chosen = {id(p) for p in adapters.trained}
        frozen = [name for name, p in model.named_parameters() if id(p) not in chosen]
    assert frozen == [f"inner.{i}.parametrizations.weight.original" for i in (0, 2, 4)]


def test_computed_weights_are_left_as_they_are() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 16))
    with lora.added(model, 2, seed=0) as adapters:
        assert adapters.weights == 1
    assert parametrize.is_parametrized(model[0])


@pytest.mark.parametrize("name", ["lstm", "torch_encoder"])
def test_the_exported_graph_is_the_merged_module(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    model, _ = recovered(case.adapter(), Recipe(epochs=1, lora_rank=2), case.tools(tmp_path))
    signature, path = case.signature(), tmp_path / "model.onnx"
    batches = [dict(zip(case.shapes, (t.numpy() for t in case.tensors(n)), strict=True)) for n in (1, 3)]
    export(model, signature, case.tensors(2), path)
    parity.compare(
        parity.run_module(model, signature, batches), parity.run_file(path, batches), signature, parity.EXACT
    )


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv1d(8, 8, 5), lambda: nn.ConvTranspose2d(8, 6, 3), lambda: nn.Embedding(40, 16)]
)
def test_each_kind_of_layer_keeps_its_shape(make: Callable[[], nn.Module]) -> None:
    layer = make()
    weight = layer.weight.detach().clone()  # type: ignore[operator, union-attr]
    with lora.added(layer, 1, seed=0):
        [change] = [m for m in layer.modules() if isinstance(m, lora.LowRank)]
        nn.init.ones_(change.up)
    expected = weight + (torch.ones(len(weight), 1) @ change.down.detach()).view_as(weight)
    assert torch.allclose(layer.weight, expected)  # type: ignore[arg-type]
