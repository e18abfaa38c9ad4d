"""Probe: groups that matter more show more damage, and work has its price."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from petra_deploy.core import machine
from petra_deploy.core.job import Inspect, Probe
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.testing.case import DEVICE, Case, case
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.jobs import probe
from petra_deploy.worker.jobs._techniques import Shrinkers
from petra_deploy.worker.jobs.probe import damage, divergence
from tests.models import CASES, ResNet

RESIDUAL = case("residual", lambda: ResNet(blocks=(1, 2)), image=(3, 12, 12))  # every kind of block there is
PROBED = {"residual": RESIDUAL} | {name: CASES[name] for name in ("torch_encoder", "gru_both_ways", "dicts")}


@pytest.mark.parametrize("name", PROBED)
def test_every_group_that_shrinks_gets_a_finite_damage_and_costs_are_positive(name: str, tmp_path: Path) -> None:
    run = Inline(Store(tmp_path))
    case = PROBED[name]()
    facts = case.layout()
    found = run.must(Probe(workload=case.workload(run.store), layout=facts, device=DEVICE))
    smaller = {f"{g.kind}/{g.name}" for g in facts.groups if g.kind != "encoder"}  # which is a place, not a size
    assert set(found.sensitivity) == smaller
    assert all(0 <= value <= 1000 for value in found.sensitivity.values())
    assert found.forward_seconds_per_row > 0
    assert found.train_seconds_per_row is not None
    assert found.train_seconds_per_row > 0
    assert (found.train_starts_per_row > 0) == (DEVICE != "cpu")


def test_a_group_that_does_nothing_has_no_damage_and_others_have() -> None:
    case = CASES["mobilenet"]()
    with torch.no_grad():  # this residual block adds zero
        case.module.blocks[2].body[7].weight.zero_()
        case.module.blocks[2].body[7].bias.zero_()
    model = case.adapter()
    found = damage(
        model, case.layout().groups, Shrinkers(model, case.tensors(2)), case.samples(), case.signature(),
        lambda line: None, seconds=600.0,
    )  # fmt: skip
    assert found["block/blocks.2"] < 1e-9
    assert found["channels/blocks.2.body.0"] < 1e-9
    assert found["block/blocks.0"] > 1e-4
    assert found["channels/stem.0"] > 1e-4


class Fours(nn.Module):
    """Takes four rows, and no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mid(torch.relu(self.up(x)).view(4, 8, 8).flatten(1))))


class FourRows(Case):
    def signature(self) -> Signature:
        shapes = {"x": (4, 16), "output": (4, 5)}
        x, y = (TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items())
        return Signature(inputs=(x,), outputs=(y,))

    def samples(self, rows: int = 16, seed: int = 0, target: bool = True) -> Samples:
        return Samples({"x": self.tensors(rows, seed)[0].numpy()}, np.arange(rows) % 5)


def test_a_model_of_a_fixed_batch_is_probed_with_that_batch(tmp_path: Path) -> None:
    run = Inline(Store(tmp_path))
    workload = FourRows("fours", Fours().eval(), {"x": (16,)}, {}).workload(run.store, rows=30)
    seen = run.must(Inspect(workload=workload, target=machine.resolve("cpu")))
    found = run.must(Probe(workload=workload, layout=seen.layout))
    assert 0 < found.sensitivity["channels/mid"] < 1000
    assert found.train_seconds_per_row is not None


def test_without_training_rows_no_training_is_timed(tmp_path: Path) -> None:
    run = Inline(Store(tmp_path))
    case = CASES["mlp"]()
    found = run.must(Probe(workload=case.workload(run.store, trainable=False), layout=case.layout()))
    assert found.train_seconds_per_row is None


def test_groups_beyond_the_time_count_as_the_median_and_the_log_says_so() -> None:
    case = CASES["mlp"]()
    lines: list[str] = []
    groups = case.layout().groups
    found = damage(
        case.adapter(), groups, Shrinkers(case.adapter(), case.tensors(2)), case.samples(), case.signature(),
        lines.append, seconds=-1.0,
    )  # fmt: skip
    assert set(found) == {f"{g.kind}/{g.name}" for g in groups}
    assert "not probed" in lines[-1]


def test_divergence_is_none_for_equals_and_bounded_for_nonsense() -> None:
    y = torch.randn(8, 3)
    assert divergence(y, y) == 0
    assert divergence(y, y.mean(0).expand_as(y)) == pytest.approx(1)
    assert divergence(y, y * float("nan")) == probe.WORST


def test_the_model_and_the_number_of_threads_stay_as_they_were(tmp_path: Path) -> None:
    case = CASES["gru_mean"]()
    before, threads = copy.deepcopy(case.module.state_dict()), torch.get_num_threads()
    run = Inline(Store(tmp_path))
    run.must(Probe(workload=case.workload(run.store), layout=case.layout()))
    assert all(torch.equal(before[k], v) for k, v in case.module.state_dict().items())
    assert torch.get_num_threads() == threads
