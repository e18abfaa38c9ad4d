"""drop_blocks: what goes into a dropped block comes out of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.techniques import drop_blocks, prune
from tests.models import CASES, Case


def all_blocks(case: Case) -> drop_blocks.Options:
    return drop_blocks.Options(blocks=tuple(g.name for g in case.layout().of_kind("block")))


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "torch_encoder", "hand_encoder", "inception", "cnn"])
def test_the_model_runs_without_any_of_its_blocks(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    model = case.adapter()
    applied = drop_blocks.apply(model, all_blocks(case), case.tools(tmp_path))
    with torch.no_grad():  # torch's encoder takes its fast path here
        for rows in (1, 5):
            assert [t.shape for t in applied.model(*case.tensors(rows))] == [
                t.shape for t in model(*case.tensors(rows))
            ]
    assert applied.facts["parameters"][1] < applied.facts["parameters"][0]


def test_a_residual_block_that_adds_nothing_can_go_without_a_trace(tmp_path: Path) -> None:
    case = CASES["mobilenet"]()
    last = case.module.blocks[2].body[7]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    model = case.adapter()
    small = drop_blocks.apply(model, drop_blocks.Options(blocks=("blocks.2",)), case.tools(tmp_path)).model
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


def test_one_layer_of_torchs_encoder_can_go_whichever_it_is(tmp_path: Path) -> None:
    case = CASES["torch_encoder"]()
    for name in ("encoder.layers.0", "encoder.layers.1"):
        small = drop_blocks.apply(case.adapter(), drop_blocks.Options(blocks=(name,)), case.tools(tmp_path)).model
        with torch.no_grad():
            assert torch.isfinite(small(*case.tensors(4))[0]).all()


class Tupled(nn.Module):
    """Layers that give a tuple, as in many text models."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
            return hidden + scale * self.norm(self.linear(hidden)), None

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(hidden=x, scale=0.5)
        return self.head(x)


def test_a_block_that_gives_a_tuple_is_passed_through_as_one(tmp_path: Path) -> None:
    case = Case("tupled", Tupled().eval(), {"x": (8,)}, {})
    assert [g.name for g in case.layout().of_kind("block")] == ["layers.0", "layers.1", "layers.2"]
    small = drop_blocks.apply(case.adapter(), all_blocks(case), case.tools(tmp_path)).model
    x = case.tensors(4)
    torch.testing.assert_close(small(*x)[0], case.module.head(*x))


def test_a_block_that_changes_its_shape_is_refused(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    for name, match in (("stages.1.0", "without"), ("stages.9", "no block")):
        with pytest.raises(Problem, match=match):
            drop_blocks.apply(case.adapter(), drop_blocks.Options(blocks=(name,)), case.tools(tmp_path))


class Part(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, mask: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * mask * self.norm(self.linear(x))


class Attributes(nn.Module):
    """Like blocks in attributes, in a ModuleDict, stacked recurrent layers; some do not get their input first."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Part(), Part()
        self.named = nn.ModuleDict({"a": Part(), "b": Part()})
        self.rnn1, self.rnn2 = nn.GRU(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[..., :1] > 0).to(x.dtype)
        x = self.block2(mask, self.block1(mask, x), scale=0.5)
        for part in self.named.values():
            x = part(mask=mask, x=x)
        x, _ = self.rnn1(x)
        x, _ = self.rnn2(x)
        return self.head(x[:, -1])


def test_blocks_in_attributes_and_dicts_and_stacked_recurrent_layers_can_go(tmp_path: Path) -> None:
    case = Case("attributes", Attributes().eval(), {"x": (6, 8)}, {})
    names = ["block1", "block2", "rnn1", "rnn2", "named.a", "named.b"]
    assert sorted(g.name for g in case.layout().of_kind("block")) == sorted(names)
    small = drop_blocks.apply(case.adapter(), all_blocks(case), case.tools(tmp_path)).model
    (x,) = case.tensors(4)
    torch.testing.assert_close(small(x)[0], case.module.head(x[:, -1]))


def test_hidden_layers_of_a_perceptron_go_by_themselves_and_pruning_fits_what_is_left(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path)
    shallow = drop_blocks.apply(case.adapter(), drop_blocks.Options(blocks=("2",)), tools).model
    assert sum(isinstance(module, nn.Linear) for module in shallow.modules()) == 2
    narrow = prune.apply(shallow, prune.Options(ratios={"0": 0.5, "2": 0.5}), tools).model
    widths = [(m.in_features, m.out_features) for m in narrow.modules() if isinstance(m, nn.Linear)]
    assert widths == [(64, 32), (32, 10)]
