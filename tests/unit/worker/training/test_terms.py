"""Each further term of the loss is what its definition says: regularizers, relations of layers, their balance."""

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import replace
from petra_deploy.worker.model.blocks import PassThrough
from petra_deploy.worker.techniques import prune
from petra_deploy.worker.training import regularize
from petra_deploy.worker.training.balance import Balance
from petra_deploy.worker.training.recovery import Recipe, recovered
from petra_deploy.worker.training.relations import map_distance, row_distance, shared, token_distance
from tests.models import CASES


class Factored(nn.Sequential):
    """As a low-rank step makes it."""


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_norm_is_the_mean_of_powers() -> None:
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0], [0.0], [-1.0]])
    assert regularize.norm([a, b], 1).item() == pytest.approx(7 / 5)
    assert regularize.norm([a, b], 2).item() == pytest.approx(15 / 5)


def test_hoyer_tells_dense_from_sparse() -> None:
    one = torch.zeros(4, 5)
    one[1, 2] = -3.0
    assert regularize.hoyer([one]).item() == pytest.approx(1 / 20)
    assert regularize.hoyer([torch.full((4, 5), -0.2)]).item() == pytest.approx(1)
    assert regularize.hoyer([torch.tensor([[3.0, 4.0]])]).item() == pytest.approx(49 / 25 / 2)
    w = tensor(6, 6)
    assert regularize.hoyer([w]).item() == pytest.approx(regularize.hoyer([5 * w]).item())


def test_orthogonal_factors_are_at_nought_and_parallel_ones_are_not() -> None:
    u, s, v = torch.linalg.svd(tensor(8, 6), full_matrices=False)
    assert regularize.orthogonal([(u[:, :3] * s[:3], v[:3])]).item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 2)
    assert regularize.orthogonal([(same, same.T)]).item() == pytest.approx(2 * 2 / 2**2)
    a, b = F.normalize(tensor(5, 2), dim=0), F.normalize(tensor(2, 7, seed=1), dim=1)
    eye = torch.eye(2)
    expected = ((a.T @ a - eye).square().sum() + (b @ b.T - eye).square().sum()) / 4
    assert regularize.orthogonal([(3 * a, 0.2 * b)]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_factors_are_found_by_the_name_of_their_class() -> None:
    linear = Factored(nn.Linear(6, 2, bias=False), nn.Linear(2, 5))
    spatial = Factored(nn.Conv2d(3, 2, (3, 1), bias=False), nn.Conv2d(2, 4, (1, 3)))
    words = Factored(nn.Embedding(9, 2), nn.Linear(2, 8, bias=False))
    other = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 5))
    found = regularize.factors(nn.Sequential(OrderedDict(a=linear, b=spatial, c=words, d=other)))
    assert [(tuple(u.shape), tuple(v.shape)) for u, v in found] == [
        ((5, 2), (2, 6)), ((12, 2), (2, 9)), ((8, 2), (2, 9)),
    ]  # fmt: skip
    assert torch.equal(found[0][0] @ found[0][1], linear[1].weight @ linear[0].weight)  # type: ignore[operator]


def test_rows_are_compared_by_how_alike_they_are_whatever_the_channels() -> None:
    theirs, ours = tensor(4, 3, 5, 5), tensor(4, 2, 3, 3, seed=1)
    a, b = (F.normalize(t.flatten(1) @ t.flatten(1).T, dim=1) for t in (ours, theirs))
    assert row_distance(ours, theirs).item() == pytest.approx((a - b).square().sum().item() / 4, rel=1e-5)
    assert row_distance(theirs, theirs).item() == 0
    turned = theirs.flatten(1) @ torch.linalg.qr(tensor(75, 75, seed=2))[0]
    assert row_distance(3 * turned, theirs).item() == pytest.approx(0, abs=1e-6)


def test_tokens_are_compared_by_their_similarities_whatever_the_width() -> None:
    theirs, ours = tensor(2, 4, 8), tensor(2, 4, 3, seed=1)
    total = 0.0
    for row in range(2):
        p = (theirs[row] @ theirs[row].T / math.sqrt(8)).softmax(1)
        q = (ours[row] @ ours[row].T / math.sqrt(3)).softmax(1)
        total += (p * (p / q).log()).sum().item()
    assert token_distance(ours, theirs).item() == pytest.approx(total / 8, rel=1e-4)
    assert token_distance(theirs, theirs).item() == pytest.approx(0, abs=1e-6)


def test_positions_are_compared_by_how_much_is_there() -> None:
    theirs = tensor(2, 6, 4, 4)
    assert map_distance(2 * theirs.flip(1)[:, :6], theirs).item() == pytest.approx(0, abs=1e-6)
    ours = tensor(2, 3, 4, 4, seed=1)
    a, b = (F.normalize(t.pow(2).mean(1).flatten(1), dim=1) for t in (ours, theirs))
    assert map_distance(ours, theirs).item() == pytest.approx((a - b).square().sum().item() / 2, rel=1e-5)


def test_the_balance_is_least_where_its_definition_says() -> None:
    balance = Balance(("a", "b"))
    terms = {"a": torch.tensor(3.0), "b": torch.tensor(0.01)}
    start = balance(terms).item()
    assert start == pytest.approx(3.01 + 2 * math.log(1.5))
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        balance(terms).backward()
        optimizer.step()
    for name, scale in zip(balance.names, balance.logs.exp().tolist(), strict=True):
        assert terms[name].item() == pytest.approx(2 * scale**2 / (1 + scale), rel=1e-2)
    weights = balance.weights()
    assert weights["a"] < 1 < weights["b"]


@pytest.mark.parametrize(
    ("name", "layers", "form"),
    [("resnet", ["stages.0.1", "stages.1.1", "stages.2.1", "stages.3.1"], "maps"), ("inception", None, "maps"),
     ("torch_encoder", ["encoder.layers.0", "encoder.layers.1"], "tokens"), ("lstm", ["rnn"], "tokens"),
     ("mlp", ["0", "2"], "rows")],
)  # fmt: skip
def test_layers_of_one_name_are_compared_in_the_way_their_outputs_permit(
    name: str, layers: list[str] | None, form: str
) -> None:
    case = CASES[name]()
    found = shared(case.adapter(), case.adapter(), case.tensors(2))
    assert {layer.form for layer in found} == {form}
    assert layers is None or [layer.name for layer in found] == layers


def test_blocks_that_were_dropped_are_not_compared() -> None:
    case = CASES["resnet"]()
    model = surgery.twin(case.adapter())
    replace(model, "stages.3.1", PassThrough())
    assert "stages.3.1" not in [layer.name for layer in shared(model, case.adapter(), case.tensors(2))]


@pytest.mark.parametrize(("name", "option"), [("cnn", "features"), ("cnn", "attention"), ("torch_encoder", "attention"),
                                              ("lstm", "features")])  # fmt: skip
def test_a_pruned_model_learns_the_relations_of_the_originals_layers(name: str, option: str, tmp_path: Path) -> None:
    case = CASES[name]()
    tools = case.tools(tmp_path, rows=64)
    model: nn.Module = case.adapter()
    if name == "cnn":
        ratios = {group.name: 0.5 for group in case.layout().of_kind("channels")}
        model = prune.apply(model, prune.Options(ratios=ratios, round_to=4), tools).model
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * p.std() * tensor(*p.shape) if p.numel() > 1 else 0
    recipe = Recipe(epochs=8, lr=5e-3, distil=0, labels=0, **{option: 1.0})  # type: ignore[arg-type]
    _, facts = recovered(model, recipe, tools)
    losses = facts["losses"]
    assert isinstance(losses, list)
    assert losses[-1] < 0.8 * losses[0]
    assert facts["layers"]


def test_weights_get_smaller_or_sparser_as_asked(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=64)

    def after(**terms: float) -> list[Tensor]:
        model, _ = recovered(case.adapter(), Recipe(epochs=20, lr=5e-3, weight_decay=0, **terms), tools)  # type: ignore[arg-type]
        return regularize.matrices(model)

    plain = after()
    assert regularize.norm(after(norm=10.0), 2) < 0.8 * regularize.norm(plain, 2)
    assert regularize.hoyer(after(hoyer=10.0)) < 0.8 * regularize.hoyer(plain)


def test_terms_without_anything_to_act_on_are_refused(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=32)
    for recipe, why in ((Recipe(orthogonal=1.0), "no low-rank factors"), (Recipe(attention=1.0), "no layer's output")):
        with pytest.raises(Problem, match=why) as caught:
            recovered(case.adapter(), recipe, tools)
        assert caught.value.kind == "unsupported"


def test_adaptive_weights_are_told_and_train(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    recipe = Recipe(epochs=3, balance="adaptive", features=1.0, norm=0.1)
    model, facts = recovered(case.adapter(), recipe, case.tools(tmp_path, rows=32))
    weights = facts["weights"]
    assert isinstance(weights, dict)
    assert weights.keys() == {"original", "labels", "features", "norm"}
    assert all(np.isfinite(list(weights.values())))
    assert all(torch.isfinite(p).all() for p in model.parameters())
