"""shrink_rnn: fewer hidden units, and exactly their columns gone from whoever reads them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.techniques import shrink_rnn
from tests.models import CASES, Case, Recurrent

HALF = shrink_rnn.Options(ratios={"rnn": 0.5}, round_to=4)


def silence(rnn: nn.RNNBase, units: list[int]) -> None:
    """Make these units of every layer and direction answer zero, whatever comes in."""
    gates = rnn.weight_ih_l0.shape[0] // rnn.hidden_size
    rows = [g * rnn.hidden_size + u for g in range(gates) for u in units]
    with torch.no_grad():
        for name, tensor in rnn.named_parameters():
            tensor[rows] = 0
            if name.startswith("weight_hh"):
                tensor[:, units] = 0


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("pool", ["last", "mean", "hidden"])
def test_removing_silent_units_changes_nothing(cell: str, both_ways: bool, pool: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Recurrent(cell, hidden=16, layers=2, bidirectional=both_ways, pool=pool).eval()
    silence(module.rnn, [0, 2, 3, 6, 9, 11, 12, 15])
    case = Case("rnn", module, {"x": (6, 8)}, {})
    model = case.adapter()
    small = shrink_rnn.apply(model, HALF, case.tools(tmp_path)).model
    assert small.inner.rnn.hidden_size == 8
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


@pytest.mark.parametrize("name", ["lstm", "gru_mean", "gru_both_ways", "lstm_hidden", "rnn", "events"])
def test_every_kind_shrinks_and_the_input_stays_untouched(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    model = case.adapter()
    before = copy.deepcopy(model.state_dict())
    first, second = (shrink_rnn.apply(model, HALF, case.tools(tmp_path)) for _ in range(2))
    for rows in (1, 5):
        assert [t.shape for t in first.model(*case.tensors(rows))] == [t.shape for t in model(*case.tensors(rows))]
    assert first.facts["parameters"][1] < 0.6 * first.facts["parameters"][0]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())


class Custom(nn.Module):
    """An LSTM and what `use` makes of its answer; `head` has `features` inputs."""

    def __init__(self, use: str, features: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True, bidirectional=use in ("sum", "halves"))
        self.use, self.head, self.attention = use, nn.Linear(features, 3), nn.Linear(16, 1)
        self.second = nn.GRU(16, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.use == "start":
            zeros = torch.zeros(1, len(x), 16)
            return self.head(self.rnn(x, (zeros, zeros))[0][:, -1])
        y, _ = self.rnn(x)
        if self.use == "attention":
            return self.head((torch.softmax(self.attention(y), 1) * y).sum(1))
        if self.use == "flatten":
            return self.head(y.flatten(1))
        if self.use == "sum":
            return self.head((y[..., :16] + y[..., 16:])[:, -1])
        if self.use == "halves":
            return self.head(torch.cat(y[:, -1].chunk(2, 1)[::-1], 1))
        if self.use == "max":
            return self.head(torch.relu(y).amax(1))
        if self.use == "stacked":
            return self.head(self.second(y)[0][:, -1])
        if self.use == "state":
            return self.rnn(x)[1][0][-1]
        if self.use == "softmax":
            return self.head(torch.softmax(y[:, -1], 1))
        return self.head(y[:, -1] / y[:, -1].norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("use", "features"),
    [("attention", 16), ("flatten", 96), ("max", 16), ("stacked", 12), ("halves", 32)],
)
def test_readers_are_found_through_what_users_write_between(use: str, features: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(use, Custom(use, features).eval(), {"x": (6, 8)}, {})
    silence(case.module.rnn, [0, 2, 3, 6, 9, 11, 12, 15])
    model = case.adapter()
    small = shrink_rnn.apply(model, HALF, case.tools(tmp_path)).model
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


@pytest.mark.parametrize(
    ("use", "features", "why"),
    [
        ("start", 16, "forward pass"),
        ("sum", 16, "forward pass"),  # 16 is written into its forward
        ("state", 16, "outputs"),
        ("softmax", 16, "several"),
        ("normed", 16, "several"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(use: str, features: int, why: str, tmp_path: Path) -> None:
    case = Case(use, Custom(use, features).eval(), {"x": (6, 8)}, {})
    assert case.layout().of_kind("units") == ()
    assert why in case.layout().refused["units/rnn"]
    with pytest.raises(Problem):
        shrink_rnn.apply(case.adapter(), HALF, case.tools(tmp_path))


def test_directions_that_are_added_up_keep_the_same_units(tmp_path: Path) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 16, batch_first=True, bidirectional=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            forward, backward = self.rnn(x)[0][:, -1].chunk(2, 1)
            return self.head(forward + backward)

    torch.manual_seed(0)
    case = Case("added", Added().eval(), {"x": (6, 8)}, {})
    silence(case.module.rnn, [1, 2, 4, 5, 8, 9, 13, 14])
    model = case.adapter()
    small = shrink_rnn.apply(model, HALF, case.tools(tmp_path)).model
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


def test_projected_units_are_refused() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 16, proj_size=4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    facts = Case("projected", Projected().eval(), {"x": (6, 8)}, {}).layout()
    assert "proj_size" in facts.refused["units/rnn"]
