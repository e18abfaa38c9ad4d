"""The number of threads is the one whose steps were fastest, and is put back."""

import time
from collections.abc import Iterator

import pytest
import torch

from petra_deploy.worker.training import threads


@pytest.fixture(autouse=True)
def _four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def run(found: threads.Threads, steps: int, slow: int) -> list[int]:
    """The threads of each step, where `slow` of them make it slow."""
    used = []
    for _ in range(steps):
        with found.step():
            used.append(torch.get_num_threads())
            time.sleep(5e-3 if used[-1] == slow else 1e-4)
    return used


def test_the_fastest_is_kept_and_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_AGAIN", 20)
    with threads.chosen("cpu") as found:
        found.choices = (4, 1)
        assert run(found, 20, slow=4) == [4] * 3 + [1] * 17
        assert run(found, 20, slow=1) == [4] * 3 + [1] * 3 + [4] * 14
    assert torch.get_num_threads() == 4


def test_all_the_root_and_one_are_compared_on_the_cpu_and_nothing_elsewhere() -> None:
    with threads.chosen("cpu") as found:
        assert found.choices == (4, 2, 1)
    with threads.chosen("cuda") as found:
        assert found.choices == (1,)
        assert run(found, 3, slow=1) == [4, 4, 4]


def test_a_step_that_raises_leaves_the_threads_as_they_were() -> None:
    def failing() -> None:
        with threads.chosen("cpu") as found, found.step():
            torch.set_num_threads(1)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.get_num_threads() == 4
