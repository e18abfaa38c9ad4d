"""select_early: the same answers, and the last layer's products get one row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core import machine
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.artifact import work
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import select_early
from tests.models import CASES, Case

TOKENS = {"ids": (12,), "mask": (12,)}


class Reads(nn.Module):
    """One attention layer with its own projections, and what `use` reads of it."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.embed, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.place = nn.Parameter(torch.randn(12, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (f(x).view(len(x), 12, 2, 8).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = ((q @ k.transpose(2, 3)).softmax(3) @ v).transpose(1, 2).reshape(len(x), 12, 16)
        y = self.norm(x + self.out(y)) + self.place
        if self.use == "last":
            return self.head(torch.tanh(y[:, -1]))
        if self.use == "slice":
            return self.head(y[:, 3:4])
        if self.use == "two":
            return self.head(y[:, 0] + y[:, 1])
        if self.use == "channel":  # along the features, which the norm joins
            return y[:, :, 5]
        if self.use == "batch":
            return self.head(y[:, 0]) * y[:1].mean()
        return self.head(y.mean(1) + y[:, 0])


def both(case: Case, folder: Path) -> tuple[Path, Path, dict[str, object]]:
    source = folder / "source.onnx"
    export(case.adapter(), case.signature(), case.tensors(2), source)
    applied = select_early.apply(source, select_early.Options(), case.tools(folder))
    feeds = [{n: t.numpy() for n, t in zip(case.shapes, case.tensors(rows, seed=3), strict=True)} for rows in (1, 4)]
    pairs = zip(parity.run_file(source, feeds), parity.run_file(applied.model, feeds), strict=True)
    for before, after in pairs:
        for wanted, found in zip(before, after, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return source, applied.model, applied.facts


def macs(path: Path, case: Case) -> float:
    feeds = {n: t.numpy() for n, t in zip(case.shapes, case.tensors(1), strict=True)}
    return sum(each.macs for each in work.count(path, feeds))


@pytest.mark.parametrize("use", ["last", "slice"])
def test_where_one_position_is_read_the_products_before_it_get_one_row(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(use, Reads(use).eval(), {"ids": (12,)}, {"ids": 50})
    source, result, facts = both(case, tmp_path)
    assert facts["products"] == 4  # query, scores, mixed values and projection
    assert macs(result, case) < 0.6 * macs(source, case)


def test_of_an_encoder_the_last_layer_alone_gets_smaller(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    source, result, facts = both(case, tmp_path)
    assert facts["products"] == 5  # scores, mixed values, projection, up, down
    assert 0.5 < macs(result, case) / macs(source, case) < 0.8


def test_of_sequences_of_any_length_at_least_the_feed_forward_part_gets_one_row(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    fixed = case.signature()
    inputs = tuple(replace(spec, shape=(spec.shape[0], "length")) for spec in fixed.inputs)
    signature, source = replace(fixed, inputs=inputs), tmp_path / "source.onnx"
    export(case.adapter(), signature, case.tensors(2), source)
    applied = select_early.apply(source, select_early.Options(), replace(case.tools(tmp_path), signature=signature))
    assert applied.facts["products"] >= 2
    feeds = [{"ids": np.arange(n)[None] + np.ones((2, 1), int), "mask": np.ones((2, n), int)} for n in (3, 20)]
    for before, after in zip(parity.run_file(source, feeds), parity.run_file(applied.model, feeds), strict=True):
        np.testing.assert_allclose(after[0], before[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantizer", ["quantize_inc", "quantize_ort"])
def test_int8_products_get_one_row_too(quantizer: str, tmp_path: Path) -> None:
    case, store = CASES["hand_encoder"](), Store(tmp_path)
    facts = []
    for steps in ((quantizer,), (quantizer, "select_early")):
        strategy = Strategy(steps=tuple(Step(technique=name, options={}) for name in steps))
        graph = Inline(store).must(Transform(workload=case.workload(store), strategy=strategy))
        facts.append((graph.facts, macs(store.path(graph.key) / "model.onnx", case)))
    (_, before), (told, after) = facts
    assert told["select_early"]["products"] == 5  # type: ignore[index]
    assert after < 0.8 * before


@pytest.mark.parametrize("use", ["two", "channel", "batch", "mean"])
def test_where_more_is_read_the_graph_stays_as_it_is(use: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(use, Reads(use).eval(), {"ids": (12,)}, {"ids": 50})
    source, result, facts = both(case, tmp_path)
    assert facts == {"products": 0}
    assert source.read_bytes() == result.read_bytes()


def test_it_is_for_models_with_transformer_layers() -> None:
    cpu = machine.resolve("cpu")
    assert select_early.obstacles(CASES["torch_encoder"]().layout(), cpu) == ()
    assert "no transformer layer" in select_early.obstacles(CASES["mlp"]().layout(), cpu)[0]
