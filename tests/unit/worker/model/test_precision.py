"""Parts of a model by the user's names, and signal to noise by its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from petra_deploy.core.plan import Knob
from petra_deploy.worker.model import precision
from petra_deploy.worker.model.islands import Attempts, relieve
from petra_deploy.worker.techniques import quantize_inc
from tests.models import CASES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn", ["features.0", "features.1", "features.2"]),
        ("torch_encoder", ["embed", "encoder.layers.0", "encoder.layers.1"]),
        ("mlp", ["0", "2"]),  # not the small head
        ("rnn", []),  # one part is no choice
    ],
)
def test_parts_are_blocks_and_the_layers_outside_of_any(name: str, expected: list[str]) -> None:
    assert precision.parts(CASES[name]().adapter()) == expected


def test_parts_are_disjoint_and_are_modules_of_the_model() -> None:
    for make in CASES.values():
        model = make().adapter()
        names = precision.parts(model)
        assert all(model.inner.get_submodule(name) is not None for name in names)
        assert not any(precision.within(a, [b]) for a in names for b in names if a != b)


def test_only_the_named_part_is_rounded() -> None:
    model = CASES["mlp"]().adapter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = precision.rounded(model, "2").state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [name for name in before if not torch.equal(before[name], rounded[name])] == ["inner.2.weight"]
    weight, scale = before["inner.2.weight"], before["inner.2.weight"].abs().amax(1, keepdim=True) / 127
    assert torch.allclose(rounded["inner.2.weight"], (weight / scale).round() * scale)


def test_signal_to_noise_is_that_of_the_worst_output() -> None:
    a = np.array([[3.0, 4.0]], np.float32)
    assert precision.sqnr_db([a], [a + np.array([[0.0, 0.5]], np.float32)]) == 20.0  # 25 / 0.25
    assert precision.sqnr_db([a, a], [a, a + np.array([[3.0, 4.0]], np.float32)]) == 0.0
    assert precision.sqnr_db([a], [a]) == precision.BEST_DB
    assert precision.sqnr_db([a], [a * np.nan]) == precision.WORST_DB
    assert precision.sqnr_db([a.astype(int)], [a.astype(int) + 5]) == precision.BEST_DB  # classes are no signal


def test_islands_are_the_worst_blocks_and_no_more_than_it_takes() -> None:
    harm = {"a": 30.0, "b": 3.0, "c": 5.0, "d": 40.0}
    tried: list[tuple[str, ...]] = []

    def quantize(kept: tuple[str, ...]) -> tuple[str, ...]:
        tried.append(kept)
        return kept

    def judge(kept: tuple[str, ...]) -> float:
        return min(value for name, value in harm.items() if name not in kept)

    found = relieve(Attempts(quantize, judge, harm.__getitem__), lambda: list(harm), most=4, least_db=10.0)
    assert found.kept == ("b", "c")
    assert tried == [(), ("b",), ("b", "c")]
    assert [(c.block, c.sqnr_db) for c in found.culprits][:2] == [("b", 3.0), ("c", 5.0)]
    assert (found.before_db, found.sqnr_db) == (3.0, 30.0)
    silent = relieve(Attempts(quantize, judge, harm.__getitem__), lambda: list(harm), most=4, least_db=2.0)
    assert (silent.kept, silent.culprits, silent.facts()) == ((), (), {"sqnr_db": 3.0})
    off = relieve(Attempts(quantize, judge, harm.__getitem__), lambda: list(harm), most=0, least_db=10.0)
    assert off.facts() == {"sqnr_db": 3.0}


def test_the_groups_are_offered_and_probed() -> None:
    case = CASES["cnn"]()
    layout = case.layout()
    assert [group.name for group in layout.of_kind(precision.KIND)] == ["features.0", "features.1", "features.2"]
    knob = precision.knob(layout)["keep_float"]
    assert knob == Knob.subset(precision.KIND, high=0.5, strength=False, most_sensitive=True)
    shrink = quantize_inc.shrinker(case.adapter(), case.tensors(4))
    changed = shrink(layout.of_kind(precision.KIND)[0])
    assert not torch.equal(changed(*case.tensors(4))[0], case.adapter()(*case.tensors(4))[0])
    assert isinstance(changed, nn.Module)
