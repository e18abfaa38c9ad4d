"""The loop trains: loss down, seeds repeat, statistics fresh, a fraction of an epoch is one."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.testing.case import DEVICE, same
from petra_deploy.worker.training import samples
from petra_deploy.worker.training.loop import Course, Trained, fit
from petra_deploy.worker.training.losses import Weights, distance_for
from petra_deploy.worker.training.samples import Rows, batch_size


class Net(nn.Module):
    """Two convolutions; `view` in place of `flatten` cannot be run with channels last."""

    def __init__(self, views: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 3)
        self.views = views

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(self.conv(x)).relu()
        return (self.head(y.view(len(y), -1) if self.views else y.flatten(1)),)


def rows(n: int = 96) -> Rows:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, n)
    x = (rng.normal(size=(n, 1, 6, 6)) + target[:, None, None, None]).astype(np.float32)
    teacher = np.eye(3, dtype=np.float32)[target] * 4
    return Rows.of(Samples({"x": x}, target), ("x",), [teacher])


def train(net: nn.Module, data: Rows, seed: int = 0, **course: float) -> Trained:
    settings = {"epochs": 6, "lr": 0.01, "batch_size": 16, "device": DEVICE} | course
    distance = distance_for(data.teacher, data.target, SPECS["accuracy"], Weights(1.0, 0.5, 2.0))
    return fit(net, data, distance, Course(**settings), seed=seed)  # type: ignore[arg-type]


def seeded(views: bool = False) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(views).eval()


@pytest.mark.parametrize("views", [False, True])
def test_training_lowers_the_loss_whatever_the_memory_layout(views: bool) -> None:
    net = seeded(views)
    trained = train(net, rows())
    assert trained.steps == 36
    assert len(trained.losses) == 6
    assert trained.losses[-1] < trained.losses[0] / 2
    assert not net.training
    assert net.conv.weight.is_contiguous()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_generator_alone() -> None:
    a, b, c = seeded(), seeded(), seeded()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(a, rows(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    train(b, rows(), seed=5)
    train(c, rows(), seed=6)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)


def test_half_an_epoch_sees_half_of_the_rows_and_none_changes_nothing() -> None:
    net = seeded()
    before = copy.deepcopy(net.state_dict())
    assert train(net, rows(), epochs=0.0).steps == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert train(net, rows(), epochs=0.5).steps == 3
    assert train(net, rows(), epochs=1.5).steps == 9
    assert train(net, rows(), epochs=0.01).steps == 1


def test_statistics_are_those_of_the_rows_after_the_last_step() -> None:
    net, data = seeded(), rows()
    train(net, data, epochs=1, batch_size=96)
    with torch.no_grad():
        seen = net.conv(torch.tensor(data.inputs[0]))
    assert torch.allclose(net.norm.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4)  # type: ignore[arg-type]


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert train(seeded(), rows(10), epochs=3).steps == 3


def test_a_loss_that_is_no_number_is_divergence_with_its_epoch_and_rate() -> None:
    data = rows()
    data.inputs[0][0] = np.nan
    with pytest.raises(Problem, match="epoch 1") as caught:
        train(seeded(), data)
    assert caught.value.kind == "diverged"
    assert "0.01" in caught.value.hint


def test_frozen_layers_are_trained_too() -> None:
    net = seeded().requires_grad_(False)
    before = net.conv.weight.clone()
    train(net, rows(), epochs=1)
    assert not torch.equal(before, net.conv.weight)


def test_rows_that_a_gpu_holds_are_those_that_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for held in (False, True):
        monkeypatch.setattr(samples, "_fits", lambda rows, device, held=held: held)
        net = seeded()
        train(net, rows())
        trained.append(net)
    assert all(same(a.detach(), b.detach()) for a, b in zip(*(net.parameters() for net in trained), strict=True))


def test_the_cpu_copies_out_a_batch_when_its_turn_comes() -> None:
    data = rows()
    assert samples.taking(data, "cpu") == data.take


def test_rows_of_the_original_must_be_those_of_the_data() -> None:
    with pytest.raises(ValueError, match="9 rows, the training data 10"):
        Rows.of(Samples({"x": np.zeros((10, 2))}), ("x",), [np.zeros((9, 2))])


def test_a_model_of_a_fixed_batch_size_is_trained_at_that_size() -> None:
    def spec(first: int | str) -> Signature:
        return Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(first, 3)),), outputs=())

    assert batch_size(spec("batch"), 32) == 32
    assert batch_size(spec(4), 32) == 4


def test_a_weight_that_is_a_slice_is_trained_as_any_other() -> None:
    plain, sliced = seeded(), seeded()
    wide = torch.zeros(3, 128)
    wide[:, :64] = sliced.head.weight.detach()
    sliced.head.weight = nn.Parameter(wide[:, :64])
    train(plain, rows(), epochs=1)
    train(sliced, rows(), epochs=1)
    assert torch.allclose(plain.head.weight, sliced.head.weight, atol=1e-5)
