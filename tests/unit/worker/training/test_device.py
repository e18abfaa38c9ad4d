"""A device that is asked for by name is there, or it is said: training never falls back in silence."""

import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.training.device import resolve


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def _nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(("name", "found"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_what_is_there_is_taken(name: str, found: str) -> None:
    assert resolve(name) == found


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "cudax", "cpu:1", "tpu", ""])
def test_what_is_not_is_an_error_of_the_users(name: str) -> None:
    with pytest.raises(Problem, match="no such device") as caught:
        resolve(name)
    assert caught.value.kind == "input"


@pytest.mark.usefixtures("_nothing")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_without_an_accelerator_none_can_be_asked_for(name: str) -> None:
    assert resolve("auto") == "cpu"
    with pytest.raises(Problem, match="no such device here"):
        resolve(name)
