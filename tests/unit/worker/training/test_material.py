"""What shapes a training beside its loss: averages, held-out rows, mixtures, memory layout."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.worker.training.average import Average
from petra_deploy.worker.training.held_out import Held, Rounds, apart
from petra_deploy.worker.training.memory import channels_last
from petra_deploy.worker.training.mixing import answers, mixed
from petra_deploy.worker.training.recovery import Recipe, recovered
from petra_deploy.worker.training.samples import Rows
from tests.models import CASES


def test_the_average_is_that_of_its_formula() -> None:
    p = nn.Parameter(torch.zeros(2))
    average, expected = Average([p], 0.3), 0.0
    for step in range(1, 6):
        p.data += step
        average.update()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * p[0].item()
    last = p[0].item()
    with average.in_place():
        assert p[0].item() == pytest.approx(expected)
    assert p[0].item() == last
    average.keep()
    assert p[1].item() == pytest.approx(expected)


def test_averaged_weights_ship_and_norms_are_theirs(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    tools = case.tools(tmp_path, rows=64)
    plain, _ = recovered(case.adapter(), Recipe(epochs=2), tools)
    model, _ = recovered(case.adapter(), Recipe(epochs=2, ema=0.5), tools)
    assert not torch.equal(next(plain.parameters()), next(model.parameters()))
    norm = model.get_submodule("inner.features.0.1")
    assert tools.train is not None
    with torch.no_grad():
        seen = model.get_submodule("inner.features.0.0")(torch.tensor(tools.train.inputs["image"]))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-4)  # type: ignore[arg-type]


def test_held_out_rows_are_a_tenth_and_no_row_is_lost() -> None:
    values = np.arange(50.0)
    learn, held = apart(Rows((values,), (values * 2,), values), 0.1, seed=1)
    assert len(held) == 5
    assert sorted([*learn.inputs[0], *held.inputs[0]]) == values.tolist()
    assert np.array_equal(held.teacher[0], 2 * held.inputs[0])
    again, other = (apart(Rows((values,), (values,)), 0.1, seed=seed)[1] for seed in (1, 2))
    assert np.array_equal(again.inputs[0], held.inputs[0])
    assert not np.array_equal(other.inputs[0], held.inputs[0])


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x + self.value,)


def test_training_stops_when_patience_ends_and_the_best_weights_come_back() -> None:
    rows = Rows((np.zeros((4, 1), np.float32),), (np.zeros((4, 1), np.float32),))

    def distance(ours: object, theirs: object, labels: object) -> Tensor:
        return (ours[0] - theirs[0]).square().mean()  # type: ignore[index]

    model, rounds = Offset(), Rounds(2, Held(distance, rows, 2, "cpu"))
    ended = []
    for value in (3.0, 1.0, 2.0, 4.0, 0.0):
        model.value.data.fill_(value)
        ended.append(rounds.enough(model))
        if ended[-1]:
            break
    assert ended == [False, False, False, True]
    rounds.restore(model)
    assert float(model.value) == 1.0
    assert rounds.best == 2
    assert rounds.seen == (9.0, 1.0, 4.0, 16.0)


def test_patience_ends_a_training_that_does_not_gain(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = case.tools(tmp_path, rows=60)
    model, facts = recovered(case.adapter(), Recipe(epochs=60, lr=1e-2, patience=2, labels=0), tools)
    held = facts["held_out"]
    assert isinstance(held, list)
    assert len(held) == facts["best_epoch"] + 2 < 60  # type: ignore[operator]
    assert held[facts["best_epoch"] - 1] == min(held)  # type: ignore[operator]
    tiny = Samples({"x": np.zeros((1, 64), np.float32)})
    with pytest.raises(Problem, match="too few"):
        recovered(
            model, Recipe(patience=1), case.tools(tmp_path, train=tiny, teacher_outputs=lambda: [np.zeros((1, 10))])
        )


def test_mixtures_lie_between_two_rows_and_the_original_answers_them() -> None:
    case = CASES["two_inputs"]()
    inputs = tuple(t.numpy() for t in case.tensors(10))
    rows = Rows(inputs, tuple(t.detach().numpy() for t in case.adapter()(*case.tensors(10))), np.arange(10))
    more = mixed(rows, lambda mixtures: answers(case.adapter(), mixtures, size=4), copies=3, seed=0)
    assert len(more) == 30
    assert more.target is None
    for index in range(30):
        fits = []
        for a in range(10):
            for b in range(10):
                line, way = inputs[1][a] - inputs[1][b], more.inputs[1][index] - inputs[1][b]
                share = float(line @ way / (line @ line)) if a != b else 1.0
                other = share * inputs[0][a] + (1 - share) * inputs[0][b]
                fits.append(-0.01 <= share <= 1.01 and np.allclose(other, more.inputs[0][index], atol=1e-4))
        assert any(fits)
    with torch.no_grad():
        whole = case.adapter()(*map(torch.from_numpy, more.inputs))
    assert np.allclose(more.teacher[0], whole[0].numpy(), atol=1e-5)


def test_mixtures_train_and_whole_numbers_cannot_be_mixed(tmp_path: Path) -> None:
    case = CASES["inception"]()
    _, facts = recovered(case.adapter(), Recipe(epochs=1, augment=2), case.tools(tmp_path, rows=16))
    assert facts["mixed_rows"] == 32
    text = CASES["torch_encoder"]()
    with pytest.raises(Problem, match="cannot be mixed") as caught:
        recovered(text.adapter(), Recipe(augment=2), text.tools(tmp_path))
    assert caught.value.kind == "unsupported"


def test_the_original_answers_mixtures_once_for_all_candidates(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    made: dict[str, Sequence[np.ndarray]] = {}
    asked: list[str] = []

    def kept(name: str, make: Callable[[], Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
        asked.append(name)
        if name not in made:
            made[name] = make()
        return made[name]

    tools = case.tools(tmp_path, rows=16, kept=kept)
    for _ in range(2):
        recovered(case.adapter(), Recipe(epochs=1, augment=2), tools)
    assert len(asked) == 2
    assert len(made) == 1


class Viewed(nn.Module):
    """`view` in place of `flatten`: its features must lie as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding="same")
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.conv(x).view(len(x), -1)),)


def test_series_laid_out_as_images_give_the_same_gradients() -> None:
    case = CASES["inception"]()
    (series,) = case.tensors(6)
    plain = case.adapter().double().train()
    other = copy.deepcopy(plain)
    plain(series.double())[0].square().sum().backward()
    kinds = [type(m) for m in other.modules()]
    with channels_last(other, (series.double(),), "cpu"):
        assert [type(m) for m in other.modules()] != kinds
        other.train()(series.double())[0].square().sum().backward()
    assert [type(m) for m in other.modules()] == kinds
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-9)
    for a, b in zip(plain.buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b)


def test_a_model_that_calls_view_stays_as_it_is() -> None:
    model = Viewed()
    with channels_last(model, (torch.randn(2, 2, 8),), "cpu"):
        assert type(model.conv) is nn.Conv1d
    with pytest.raises(KeyError), channels_last(nn.Sequential(nn.Conv1d(2, 4, 3)), (torch.randn(2, 2, 8),), "cpu"):
        raise KeyError
    assert type(model.conv) is nn.Conv1d
