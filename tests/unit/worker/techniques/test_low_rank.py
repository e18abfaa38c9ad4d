"""low_rank, in channels and in space, and of embeddings: the best factors of the rank that was asked for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from petra_deploy.core import machine
from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.measure import factors
from petra_deploy.worker.model import adapter, parity
from petra_deploy.worker.model.factored import Factored, pairs
from petra_deploy.worker.techniques import low_rank, low_rank_embedding, low_rank_spatial, prune
from tests.models import CASES, Case


def layers(case: Case, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, m in case.module.named_modules() if type(m) in kinds]


def applied(technique: Any, case: Case, tmp_path: Path, levels: dict[str, float], **options: Any) -> Any:
    return technique.apply(case.adapter(), technique.Options(levels=levels, **options), case.tools(tmp_path, rows=64))


def test_a_linear_layer_becomes_the_truncated_svd_of_its_matrix(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    result = applied(low_rank, case, tmp_path, {"0": 0.75}, select="ratio")
    u, s, v = np.linalg.svd(case.module[0].weight.detach().numpy())
    pair = adapter.submodule(result.model, "0")
    np.testing.assert_allclose(pair.weight.detach().numpy(), (u[:, :16] * s[:16]) @ v[:16], atol=1e-5)
    assert torch.equal(pair.bias, case.module[0].bias)
    assert result.facts["ranks"] == {"0": [64, 16, 64 * 64 + 64, 2 * 16 * 64 + 64]}
    assert pairs(result.model) == [("0", pair)]


class Planted(nn.Module):
    """Layers whose matrices have rank 4 or less, of each sort that can be factored."""

    def __init__(self, convs: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12, padding_idx=0)
        self.conv = nn.Conv2d(6, 12, (3, 5), (2, 1), (1, 2), bias=False)
        self.plain = nn.Conv2d(12, 16, 3, 2, "valid", dilation=(1, 2))
        self.long = nn.Conv1d(12, 20, 5, padding="same", padding_mode="circular")
        self.fc = nn.Linear(48, 30)
        with torch.no_grad():
            for layer in (self.embed, self.conv, self.plain, self.long, self.fc):
                flat = layer.weight.flatten(1)
                flat = 0.2 * torch.randn(len(flat), 4) @ torch.randn(4, flat.shape[1])
                layer.weight.copy_(flat.view_as(layer.weight))
            self.embed.weight[0] = 0

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        x = self.plain(torch.relu(self.conv(image))).mean((2, 3))
        return self.fc(torch.cat([x, self.long(self.embed(ids).transpose(1, 2)).mean(2), self.embed(ids)[:, 0]], 1))


def planted() -> Case:
    torch.manual_seed(0)
    return Case("planted", Planted().eval(), {"image": (6, 16, 16), "ids": (9,)}, {"ids": 40})


@pytest.mark.parametrize("select", ["energy", "explained_variance"])
def test_a_layer_of_low_rank_is_found_and_nothing_is_lost(select: Any, tmp_path: Path) -> None:
    case = planted()
    result = applied(low_rank, case, tmp_path, dict.fromkeys(("conv", "plain", "long", "fc"), 1e-9), select=select)
    assert all(rank <= 4 for _, rank, *_ in result.facts["ranks"].values())
    assert set(result.facts["ranks"]) == {"conv", "plain", "long", "fc"}
    small = low_rank_embedding.apply(
        result.model, low_rank_embedding.Options(levels={"embed": 1e-9}, select=select), case.tools(tmp_path)
    )
    assert small.facts["ranks"]["embed"][1] <= 4
    x = case.tensors(5, seed=3)
    torch.testing.assert_close(small.model(*x)[0], case.adapter()(*x)[0], atol=2e-5, rtol=1e-4)


def test_explained_variance_is_of_the_outputs_on_calibration_rows(tmp_path: Path) -> None:
    """The rank is the least that explains enough of what the layer answers, and no factors of it answer closer."""
    case = CASES["mlp"]()
    samples = case.samples(64)
    x = torch.from_numpy(samples.inputs["x"]).double()
    y = x @ case.module[0].weight.detach().double().T
    given_up = 0.3
    result = applied(low_rank, case, tmp_path, {"0": given_up}, select="explained_variance")
    _, found, *_ = result.facts["ranks"]["0"]
    values = np.linalg.svd((y - y.mean(0)).numpy(), compute_uv=False) ** 2
    explained = np.cumsum(values) / values.sum()
    assert explained[found - 1] >= 1 - given_up > explained[found - 2]
    with torch.no_grad():
        answer = adapter.submodule(result.model, "0")(x.float()).double() - case.module[0].bias.double()
    left = float((answer - y).square().sum() / (y - y.mean(0)).square().sum())
    assert left == pytest.approx(1 - explained[found - 1], rel=1e-3)


def test_in_space_full_rank_is_the_same_function_and_a_lower_one_the_truncated_svd(tmp_path: Path) -> None:
    for layer in (
        nn.Conv2d(6, 12, (3, 5), (2, 1), (1, 2), (1, 2)),
        nn.Conv2d(6, 12, 3, padding="same", padding_mode="reflect", bias=False),
    ):
        values = low_rank_spatial.space_matrix(layer)
        left, _, right = low_rank_spatial.svd(values)
        x = torch.randn(2, 6, 14, 15)
        torch.testing.assert_close(low_rank_spatial.in_space(layer, left, right)(x), layer(x), atol=1e-5, rtol=1e-4)
    case = CASES["cnn"]()
    result = applied(low_rank_spatial, case, tmp_path, {"features.1.0": 0.75}, select="ratio")
    weight = case.module.features[1][0].weight.detach().numpy()  # (32, 16, 3, 3)
    u, s, v = np.linalg.svd(weight.transpose(1, 2, 0, 3).reshape(48, 96), full_matrices=False)
    pair = adapter.submodule(result.model, "features.1.0")
    found = torch.einsum("rih,orw->oihw", pair.first.weight[..., 0], pair.second.weight[:, :, 0]).detach().numpy()
    wanted = ((u[:, :12] * s[:12]) @ v[:12]).reshape(16, 3, 32, 3).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert result.facts["ranks"]["features.1.0"][:2] == [48, 12]


@pytest.mark.parametrize("name", ["resnet", "torch_encoder", "inception"])
def test_the_artifact_is_its_module(name: str, tmp_path: Path) -> None:
    case, store = CASES[name](), Store(tmp_path)
    workload = case.workload(store)
    groups = low_rank.groups(look(case)).refused | {g.name: "" for g in low_rank.groups(look(case)).groups}
    levels = {
        n: 0.6 for n in layers(case, nn.Linear, nn.Conv1d, nn.Conv2d) if "weight is read" not in groups.get(n, "")
    }
    levels = {n: v for n, v in levels.items() if not groups.get(n, "").startswith("it is a convolution in groups")}
    step = Step(technique="low_rank", options={"levels": levels, "select": "ratio"})
    graph = Inline(store).must(Transform(workload=workload, strategy=Strategy(steps=(step,))))
    assert graph.facts["low_rank"]["ranks"]
    assert graph.facts["parity"]["module"]  # compared exactly, or the job fails
    feeds = {n: v[:3] for n, v in case.samples(3).inputs.items()}
    assert len(parity.run_file(store.path(graph.key) / "model.onnx", [feeds])[0][0]) == 3


def look(case: Case) -> Any:
    from petra_deploy.worker.model.costs import layer_macs
    from petra_deploy.worker.model.layout import Look
    from petra_deploy.worker.model.trial import Trial

    model = case.adapter()
    trial = Trial(model, case.tensors(4))
    return Look(model, trial, layer_macs(model, trial.feeds[0]), case.signature())


class Odd(nn.Module):
    """What must stay whole, and why."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.embed.weight
        self.read = nn.Linear(16, 16)
        self.normed = parametrizations.weight_norm(nn.Linear(16, 16))
        self.grouped = nn.Conv1d(16, 16, 3, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.twice = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = nn.functional.linear(x, self.read.weight, self.read.bias) + self.normed(x)
        x = self.attention(x, x, x)[0] + self.grouped(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.twice(torch.relu(self.twice(x))).mean(1))


@pytest.mark.parametrize(
    ("name", "why"),
    [("out", "shared"), ("read", "read by other code"), ("normed", "computed"), ("grouped", "in groups"),
     ("attention.out_proj", "reads its weight"), ("attention", "MultiheadAttention"), ("nowhere", "no layer")],
)  # fmt: skip
def test_what_cannot_be_factored_is_refused_in_words(name: str, why: str, tmp_path: Path) -> None:
    case = Case("odd", Odd().eval(), {"ids": (7,)}, {"ids": 30})
    with pytest.raises(Problem, match=why):
        applied(low_rank, case, tmp_path, {name: 0.5})
    if name == "out":
        with pytest.raises(Problem, match="shared"):
            applied(low_rank_embedding, case, tmp_path, {"embed": 0.5})


def test_a_layer_that_is_called_twice_is_factored_once(tmp_path: Path) -> None:
    case = Case("odd", Odd().eval(), {"ids": (7,)}, {"ids": 30})
    result = applied(low_rank, case, tmp_path, {"twice": 0.8}, select="explained_variance")
    assert [name for name, _ in pairs(result.model)] == ["twice"]
    assert len(result.model(*case.tensors(3))[0]) == 3


def test_layers_stay_where_the_rank_does_not_pay(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    levels = {"0": 0.6, "2": 0.6, "4": 0.01}
    result = applied(low_rank, case, tmp_path, levels, select="ratio", worth={"0": 8, "2": 32})
    assert list(result.facts["ranks"]) == ["2"]
    assert "only up to rank 8" in result.facts["kept"]["0"]
    assert "no fewer weights" in result.facts["kept"]["4"]


def test_torchs_fused_encoder_layer_still_answers(tmp_path: Path) -> None:
    case = CASES["torch_encoder"]()
    names = layers(case, nn.Linear)
    result = applied(low_rank, case, tmp_path, dict.fromkeys(names, 0.7), select="ratio")
    assert "encoder.layers.0.linear1" in result.facts["ranks"]
    x = case.tensors(3)
    with torch.enable_grad():
        plain = result.model(*x)[0]
    with torch.no_grad():  # the fast path reads `weight` of the factors
        torch.testing.assert_close(result.model(*x)[0], plain, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet", "hand_encoder", "mlp", "inception"])
@pytest.mark.parametrize("first", ["low_rank", "prune"])
def test_it_and_pruning_take_each_others_results(name: str, first: str, tmp_path: Path) -> None:
    case = CASES[name]()
    ratios = {g.name: 0.5 for g in prune.groups(look(case)).groups}
    levels = dict.fromkeys([n for n in layers(case, nn.Linear, nn.Conv1d, nn.Conv2d) if "head" not in n], 0.6)
    steps = [
        (prune, prune.Options(ratios=ratios, round_to=4)),
        (low_rank, low_rank.Options(levels=levels, select="ratio")),
    ]
    model = case.adapter()
    facts: dict[str, Any] = {}
    for technique, options in steps if first == "prune" else steps[::-1]:
        result = technique.apply(model, options, case.tools(tmp_path))
        model, facts = result.model, facts | result.facts
    assert facts["ranks"]
    assert any(after < before for before, after in facts["widths"].values())
    assert [t.shape for t in model(*case.tensors(3))] == [t.shape for t in case.adapter()(*case.tensors(3))]


def test_a_layer_is_offered_with_the_largest_rank_that_is_enough_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = factors.Wide("linear", (1, 50, 256), (512, 256))
    ranks = [128, 80, 32, 16]  # three quarters, a half, a quarter and an eighth of 170, in sixteens
    tried: list[int] = []

    def timed(whole: Any, others: list[Any]) -> list[float]:
        shapes = [[tuple(t.dims) for t in probe.model.graph.initializer] for probe in others]
        tried.extend(shape[0][1] for shape in shapes)
        return [1.05, 1.09, 1.4, 2.0]

    monkeypatch.setattr(factors, "_timed", timed)
    factors.worth.cache_clear()
    found = factors.worth(wide, "channels")
    factors.worth.cache_clear()
    assert (found.rank, found.speedup) == (tried[2], 1.4)
    assert tried == sorted(tried, reverse=True)
    assert len(tried) == len(ranks)


@pytest.mark.parametrize(
    ("wide", "cut"),
    [
        (factors.Wide("linear", (1, 64), (96, 64)), "channels"),
        (factors.Wide("linear", (1, 9, 64), (96, 64)), "channels"),
        (factors.Wide("conv", (1, 8, 20), (16, 8, 5), (2,), (2,), (1,)), "channels"),
        (factors.Wide("conv", (1, 8, 20, 18), (16, 8, 3, 5), (2, 1), (1, 2), (1, 2)), "channels"),
        (factors.Wide("conv", (1, 8, 20, 18), (16, 8, 3, 5), (2, 1), (1, 2), (1, 2)), "space"),
    ],
)
def test_the_small_graphs_that_are_timed_have_the_layers_output(wide: factors.Wide, cut: factors.Cut) -> None:
    import onnxruntime

    shapes = set()
    for rank in (0, 4):
        probe = factors.graph(wide, cut, rank)
        session = onnxruntime.InferenceSession(probe.model.SerializeToString(), providers=["CPUExecutionProvider"])
        shapes.add(session.run(None, probe.feeds)[0].shape)
        weights = [math.prod(t.dims) for t in probe.model.graph.initializer]
        whole = math.prod(wide.weight)
        assert (max(weights) == whole) == (rank == 0)
    assert len(shapes) == 1


def test_tiny_layers_are_not_timed_and_large_ones_are_offered_or_refused_with_a_figure() -> None:
    case = CASES["mlp"]()
    found = low_rank.groups(look(case))
    assert not found.groups
    assert "less time than to start" in found.refused["0"]
    assert low_rank.obstacles(case.layout(), machine.resolve("cpu"))
    answer = factors.worth(factors.Wide("linear", (64, 512), (512, 512)), "channels")
    assert answer.speedup > 0
    assert answer.rank in range(256)
    assert (answer.rank > 0) == (answer.why == "")


def test_a_pair_is_marked(tmp_path: Path) -> None:
    result = applied(low_rank, CASES["mlp"](), tmp_path, {"0": 0.9})
    ((name, pair),) = pairs(result.model)
    assert (name, type(pair)) == ("0", Factored)
    assert pair.rank == result.facts["ranks"]["0"][1]


def test_of_a_large_layer_a_part_is_timed_that_calls_the_same_kernels() -> None:
    tokens = factors.part(factors.Wide("linear", (1, 4096, 1024), (4096, 1024)))
    assert tokens.inputs == (1, 64, 1024)
    assert tokens.macs == factors.MOST_MACS
    conv = factors.part(factors.Wide("conv", (1, 64, 512, 512), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)))
    assert conv.macs <= factors.MOST_MACS < 4 * conv.macs
    assert conv.inputs[:2] == (1, 64)
    small = factors.Wide("linear", (1, 50, 256), (512, 256))
    assert factors.part(small) == small
    wide = factors.Wide("linear", (1, 1 << 15), (1 << 14, 1 << 15))
    assert factors.part(wide) == wide  # nothing of it can be left out
