"""Upper layers of recurrent modules go: what is left computes what a module of the other layers would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.case import Case
from petra_deploy.testing.families import Recurrent
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.model import parity
from petra_deploy.worker.techniques import drop_rnn_layers


def stacked(cell: str = "LSTM", **options: Any) -> Case:
    torch.manual_seed(0)
    return Case("stacked", Recurrent(cell, layers=3, **options).eval(), {"x": (6, 8)}, {})


def dropped(case: Case, folder: Path, *names: str) -> nn.Module:
    options = drop_rnn_layers.Options(layers=names)
    model: nn.Module = drop_rnn_layers.apply(case.adapter(), options, case.tools(folder)).model
    return model


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_what_is_left_is_the_module_of_the_other_layers(cell: str, both_ways: bool, tmp_path: Path) -> None:
    case = stacked(cell, bidirectional=both_ways)
    small = dropped(case, tmp_path, "rnn:1")
    original: Any = case.module
    first = getattr(nn, cell)(8, 24, 1, batch_first=True, bidirectional=both_ways)
    last = getattr(nn, cell)(48 if both_ways else 24, 24, 1, batch_first=True, bidirectional=both_ways)
    for made, number in ((first, 0), (last, 2)):
        for name, _ in list(made.named_parameters()):
            setattr(made, name, getattr(original.rnn, name.replace("_l0", f"_l{number}")))
    (x,) = case.tensors(5)
    with torch.no_grad():
        states = last(first(x)[0])[0]
        expected = original.head(states[:, -1])
        assert torch.equal(small(x)[0], expected)


def test_the_artifact_answers_as_its_module(tmp_path: Path) -> None:
    case, store = stacked("GRU", pool="hidden"), Store(tmp_path)
    step = Step(technique="drop_rnn_layers", options={"layers": ["rnn:1", "rnn:2"]})
    graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy(steps=(step,))))
    module = dropped(case, tmp_path, "rnn:1", "rnn:2")
    (x,) = case.tensors(3)
    (found,) = parity.run_file(store.path(graph.key) / "model.onnx", [{"x": x.numpy()}])[0]
    with torch.no_grad():
        assert np.allclose(found, module(x)[0].numpy(), atol=1e-5)


def test_layers_are_offered_where_the_model_runs_without_them() -> None:
    groups = [g for g in stacked().layout().groups if g.kind == "layer"]
    assert [g.name for g in groups] == ["rnn:1", "rnn:2"]
    assert all(g.parameters == 4 * 24 * (24 + 24 + 2) for g in groups)


class States(nn.Module):
    """Gives the states of all layers: they are part of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[1].transpose(0, 1)  # type: ignore[no-any-return]


def test_layers_whose_states_are_outputs_stay_and_it_says_why() -> None:
    layout = Case("states", States().eval(), {"x": (6, 8)}, {}).layout()
    assert not layout.of_kind("layer")
    assert "another shape" in layout.refused["layer/rnn"]


@pytest.mark.parametrize("name", ["rnn:0", "rnn:3", "head:1", "rnn", "nothing:1"])
def test_what_is_no_upper_layer_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=name.partition(":")[0]):
        dropped(stacked(), tmp_path, name)
