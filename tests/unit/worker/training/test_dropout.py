"""Smaller networks drop less while they are trained, and as much as before afterwards."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.testing.case import Case, case
from petra_deploy.worker.training import recovery
from petra_deploy.worker.training.dropout import eased, has_dropout
from petra_deploy.worker.training.recovery import Recipe, recovered


class Dropping(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, width, num_layers=2, dropout=0.25, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(x)[0][:, -1]))


def dropping(width: int = 32) -> Case:
    return case("dropping", lambda: Dropping(width), x=(5, 4))()


def test_rates_fall_with_the_root_of_what_is_left_and_come_back() -> None:
    model = Dropping()
    with eased(model, 0.16):
        assert (model.drop.p, model.rnn.dropout) == pytest.approx((0.2, 0.1))
    assert (model.drop.p, model.rnn.dropout) == (0.5, 0.25)
    with eased(model, 4.0):  # nothing ever drops more
        assert (model.drop.p, model.rnn.dropout) == (0.5, 0.25)


def test_what_drops_nothing_has_no_dropout() -> None:
    assert has_dropout(Dropping())
    assert not has_dropout(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.LSTM(4, 4)))


def test_recovery_drops_by_the_share_of_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], recovery.fit

    def fit(model: nn.Module, *given: object, **named: object) -> object:
        seen.append(next(m.p for m in model.modules() if isinstance(m, nn.Dropout)))
        return real(model, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "fit", fit)
    whole, small = dropping(), dropping(width=8)
    tools = whole.tools(tmp_path, rows=32)
    share = count(small.adapter()) / count(whole.adapter())
    trained, facts = recovered(small.adapter(), Recipe(epochs=1), tools)
    assert seen == [pytest.approx(0.5 * share**0.5)]
    assert facts["dropout_times"] == pytest.approx(share**0.5, rel=0.01)
    assert next(m.p for m in trained.modules() if isinstance(m, nn.Dropout)) == 0.5
    _, facts = recovered(whole.adapter(), Recipe(epochs=1), tools)
    assert seen[1] == 0.5
    assert "dropout_times" not in facts


def test_a_network_without_dropout_asks_nothing_of_the_original(tmp_path: Path) -> None:
    plain = case("plain", lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), x=(4,))()

    def teacher() -> nn.Module:
        raise AssertionError("the original was opened")

    recovered(plain.adapter(), Recipe(epochs=1), plain.tools(tmp_path, rows=32, teacher=teacher))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
