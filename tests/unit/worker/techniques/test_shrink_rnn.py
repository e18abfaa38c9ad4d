"""shrink_rnn: fewer hidden units, and exactly their columns gone from whoever reads them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import shrink_rnn
from tests.models import CASES, Case, Recurrent

HALF = shrink_rnn.Options(ratios={"rnn": 0.5}, round_to=4)


def silence(rnn: nn.RNNBase | nn.RNNCellBase, units: list[int]) -> None:
    """Make these units of every layer and direction answer zero, whatever comes in."""
    gates = {"L": 4, "G": 3, "R": 1}[type(rnn).__name__[0]]
    rows = [g * rnn.hidden_size + u for g in range(gates) for u in units]
    with torch.no_grad():
        for name, tensor in rnn.named_parameters():
            if name.startswith("weight_hr"):
                tensor[:, units] = 0
                continue
            tensor[rows] = 0
            if name.startswith("weight_hh") and tensor.shape[1] == rnn.hidden_size:
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


SILENT = [0, 2, 3, 6, 9, 11, 12, 15]


class Stepwise(nn.Module):
    """One cell, or two of which the second reads the first, called in a loop of the user's own."""

    def __init__(self, cell: str, start: str = "none", deep: bool = False) -> None:
        super().__init__()
        self.cells = nn.ModuleList(getattr(nn, cell)(8 if i == 0 else 16, 16) for i in range(1 + deep))
        self.start = start
        self.h0 = nn.Parameter(torch.randn(1, 16))
        self.head = nn.Linear(16, 3)

    def first(self, rows: int, cell: nn.Module) -> object:
        if self.start == "none":
            return None
        if self.start == "zeros":
            h = torch.zeros(rows, cell.hidden_size)
        elif self.start == "written":
            h = torch.zeros(rows, 16)
        else:
            h = self.h0.expand(rows, -1)
        return (h, h) if isinstance(cell, nn.LSTMCell) else h

    def forward(self, x: Tensor) -> Tensor:
        states = [self.first(len(x), cell) for cell in self.cells]
        steps = []
        for t in range(x.shape[1]):
            y = x[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = cell(y, states[i])
                y = states[i][0] if isinstance(states[i], tuple) else states[i]
            steps.append(y)
        return self.head(torch.stack(steps, 1).mean(1))


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize(("start", "deep"), [("none", False), ("zeros", True), ("parameter", False)])
def test_cells_in_a_loop_lose_units_and_what_they_start_from_loses_them_too(
    cell: str, start: str, deep: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Stepwise(cell, start, deep).eval()
    for each in module.cells:
        silence(each, SILENT)
    with torch.no_grad():
        module.h0[:, SILENT] = 0
    case = Case("stepwise", module, {"x": (6, 8)}, {})
    model = case.adapter()
    ratios = {group.name: 0.5 for group in case.layout().of_kind("units")}
    assert len(ratios) == 1 + deep
    small = shrink_rnn.apply(model, shrink_rnn.Options(ratios=ratios, round_to=4), case.tools(tmp_path)).model
    assert [each.hidden_size for each in small.inner.cells] == [8] * (1 + deep)
    if start == "parameter":
        assert small.inner.h0.shape == (1, 8)
        assert module.h0.shape == (1, 16)
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_layer_that_is_called_step_by_step_loses_units(cell: str, tmp_path: Path) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = getattr(nn, cell)(8, 16, 2, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):
                y, state = self.rnn(x[:, t : t + 1], state)
            return self.head(y[:, 0])

    torch.manual_seed(0)
    case = Case("loop", Loop().eval(), {"x": (4, 8)}, {})
    silence(case.module.rnn, SILENT)
    model = case.adapter()
    small = shrink_rnn.apply(model, HALF, case.tools(tmp_path)).model
    assert small.inner.rnn.hidden_size == 8
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


def test_a_layer_that_hears_its_own_answer_is_refused() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.cell(x)
            return self.head(self.cell(h, h))

    assert "own units" in Case("echo", Echo().eval(), {"x": (16,)}, {}).layout().refused["units/cell"]


def test_a_cell_whose_width_is_written_into_the_loop_is_refused(tmp_path: Path) -> None:
    case = Case("written", Stepwise("GRUCell", "written").eval(), {"x": (6, 8)}, {})
    assert "forward pass" in case.layout().refused["units/cells.0"]


class Started(nn.Module):
    """A recurrent layer that starts from parameters, or two that start from one."""

    def __init__(self, cell: str, layers: int, both_ways: bool, twice: bool = False, proj: int = 0) -> None:
        super().__init__()
        extra = {"proj_size": proj} if proj else {}
        self.rnn = getattr(nn, cell)(8, 16, layers, batch_first=True, bidirectional=both_ways, **extra)
        self.other = nn.GRU(8, 16, batch_first=True) if twice else None
        ways = 1 + both_ways
        self.h0 = nn.Parameter(torch.randn(layers * ways, 1, proj or 16))
        self.register_buffer("c0", torch.randn(layers * ways, 1, 16))
        self.head = nn.Linear((proj or 16) * ways, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0, c0 = (t.expand(-1, len(x), -1).contiguous() for t in (self.h0, self.c0))
        y, _ = self.rnn(x, (h0, c0) if isinstance(self.rnn, nn.LSTM) else h0)
        if self.other is not None:
            y = y + self.other(x, h0)[0]
        return self.head(y[:, -1])


@pytest.mark.parametrize(
    ("cell", "layers", "both_ways", "proj"),
    [("GRU", 1, False, 0), ("LSTM", 2, True, 0), ("LSTM", 1, False, 4), ("LSTM", 2, True, 4)],
)
def test_states_that_are_parameters_lose_the_units_and_projections_keep_their_size(
    cell: str, layers: int, both_ways: bool, proj: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Started(cell, layers, both_ways, proj=proj).eval()
    silence(module.rnn, SILENT)
    with torch.no_grad():
        module.c0[..., SILENT] = 0
        if not proj:
            module.h0[..., SILENT] = 0
    case = Case("started", module, {"x": (6, 8)}, {})
    model = case.adapter()
    small = shrink_rnn.apply(model, HALF, case.tools(tmp_path)).model
    assert small.inner.rnn.hidden_size == 8
    assert small.inner.h0.shape[-1] == (proj or 8)
    if cell == "LSTM":
        assert small.inner.c0.shape[-1] == 8
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


@pytest.mark.parametrize("module", [Stepwise("LSTMCell", "parameter"), Started("GRU", 1, True)], ids=["cell", "layer"])
def test_what_is_cut_exports_and_runs_as_the_module_does(module: nn.Module, tmp_path: Path) -> None:
    case = Case("cut", module.eval(), {"x": (6, 8)}, {})
    ratios = {group.name: 0.5 for group in case.layout().of_kind("units")}
    small = shrink_rnn.apply(case.adapter(), shrink_rnn.Options(ratios=ratios), case.tools(tmp_path)).model
    export(small, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    batches = parity.probes(case.samples(), case.signature())
    found = parity.run_file(tmp_path / "model.onnx", batches)
    parity.compare(parity.run_module(small, case.signature(), batches), found, case.signature(), parity.EXACT)


def test_of_two_layers_with_one_first_state_none_is_cut_alone(tmp_path: Path) -> None:
    case = Case("twice", Started("GRU", 1, False, twice=True).eval(), {"x": (6, 8)}, {})
    assert case.layout().of_kind("units") == ()
    with pytest.raises(Problem):
        shrink_rnn.apply(case.adapter(), HALF, case.tools(tmp_path))


@pytest.mark.parametrize("proj", [4, 10, 14])
def test_a_projecting_layer_keeps_more_units_than_it_projects_to(proj: int, tmp_path: Path) -> None:
    case = Case("projecting", Started("LSTM", 1, False, proj=proj).eval(), {"x": (6, 8)}, {})
    most = shrink_rnn.Options(ratios={"rnn": 0.95}, round_to=4)
    small = shrink_rnn.apply(case.adapter(), most, case.tools(tmp_path)).model
    assert small.inner.rnn.hidden_size == proj + 1
    assert small(*case.tensors(3))[0].shape == (3, 3)


def test_layers_that_feed_one_another_are_cut_together(tmp_path: Path) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.GRU(8, 16, 2, batch_first=True, bidirectional=True)
            self.second = nn.RNN(32, 16, batch_first=True, nonlinearity="relu")
            self.third, self.head = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x)[0])[0]
            return self.head(self.third(y)[1][1][-1])  # the cell state

    torch.manual_seed(0)
    case = Case("chain", Chain().eval(), {"x": (6, 8)}, {})
    for layer in (case.module.first, case.module.second, case.module.third):
        silence(layer, SILENT)
    model = case.adapter()
    options = shrink_rnn.Options(ratios=dict.fromkeys(("first", "second", "third"), 0.5), round_to=4)
    small = shrink_rnn.apply(model, options, case.tools(tmp_path)).model
    assert [small.inner.first.hidden_size, small.inner.second.input_size, small.inner.third.hidden_size] == [8, 16, 8]
    torch.testing.assert_close(small(*case.tensors(4)), model(*case.tensors(4)))


def test_a_state_that_a_layer_computes_for_another_is_refused() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.writes = nn.GRU(8, 16, batch_first=True), nn.GRU(8, 12, batch_first=True)
            self.between, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.writes(x, self.between(self.reads(x)[1]))[0][:, -1])

    facts = Case("translator", Translator().eval(), {"x": (6, 8)}, {}).layout()
    assert [group.name for group in facts.of_kind("units")] == ["reads"]
    assert "forward pass" in facts.refused["units/writes"]


def test_packed_sequences_are_refused() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((len(x),), x.shape[1])
            y, _ = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))
            return self.head(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0][:, -1])

    assert "packed" in Case("packed", Packed().eval(), {"x": (6, 8)}, {}).layout().refused["units/rnn"]
