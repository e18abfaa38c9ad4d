"""Recovery brings a damaged model back to the original's answers, with labels or without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Tools
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import MetricSpec
from petra_deploy.testing.case import DEVICE, same
from petra_deploy.worker.techniques import recover
from petra_deploy.worker.training.recovery import fitting
from tests.models import CASES, Case


def tools_for(case: Case, scratch: Path, *, rows: int = 128, labels: bool = False, metric: MetricSpec | None = None,
              **more: object) -> Tools:  # fmt: skip
    tensors = case.tensors(rows)
    samples = Samples({name: t.numpy() for name, t in zip(case.shapes, tensors, strict=True)})
    with torch.no_grad():
        outputs = [t.numpy() for t in case.adapter()(*tensors)]
    if labels:
        samples = Samples(samples.inputs, outputs[0].argmax(-1))
    settings = {
        "calibration": samples, "train": samples, "teacher": case.adapter, "teacher_outputs": lambda: outputs,
        "signature": case.signature(), "metric": metric or SPECS["accuracy" if labels else "agreement"],
        "seed": 3, "scratch": scratch, "log": lambda line: None, "device": DEVICE,
    }  # fmt: skip
    return Tools(**(settings | more))  # type: ignore[arg-type]


def damaged(case: Case) -> nn.Module:
    model = case.adapter()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0
    return model


def apart(model: nn.Module, tools: Tools) -> float:
    """Mean squared error to the original's outputs over their variance, the mean of a row's scores taken off."""
    assert tools.train is not None
    inputs = [torch.from_numpy(values) for values in tools.train.inputs.values()]
    with torch.no_grad():
        pairs = [(a.numpy(), b) for a, b in zip(model(*inputs), tools.teacher_outputs(), strict=True)]
    centred = [(a - _level(a), b - _level(b)) for a, b in pairs]
    return float(np.mean([((a - b) ** 2).mean() / b.var() for a, b in centred]))


def _level(scores: np.ndarray) -> np.ndarray:
    several = scores.ndim > 1 and scores.shape[-1] > 1
    return scores.mean(-1, keepdims=True) if several else np.zeros((), scores.dtype)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "hand_encoder", "lstm", "events", "inception", "two_inputs"])
def test_a_damaged_model_answers_like_the_original_again(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]()
    tools = tools_for(case, tmp_path)
    model = damaged(case)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    applied = recover.apply(model, recover.Options(epochs=8, lr=2e-3, temperature=1.0), tools)
    assert apart(applied.model, tools) < 0.7 * apart(model, tools)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # input untouched
    assert not applied.model.training
    assert applied.facts["steps"] == 64


@pytest.mark.parametrize("metric", [SPECS["accuracy"], MetricSpec(name="metric.py:wrong", higher_is_better=False)])
def test_labels_are_learnt_where_the_original_says_nothing(metric: MetricSpec, tmp_path: Path) -> None:
    case = CASES["mlp"]()
    tools = tools_for(case, tmp_path, labels=True, metric=metric)
    model = recover.apply(damaged(case), recover.Options(epochs=15, distil=0, labels=1), tools).model
    assert tools.train is not None
    with torch.no_grad():
        scores = model(torch.from_numpy(tools.train.inputs["x"]))[0]
    assert (scores.argmax(1).numpy() == tools.train.target).mean() > 0.95


def test_dict_models_with_several_outputs_are_recovered(tmp_path: Path) -> None:
    case = CASES["dicts"]()
    tools = tools_for(case, tmp_path)
    model = damaged(case)
    applied = recover.apply(model, recover.Options(epochs=20, lr=5e-3), tools)
    assert apart(applied.model, tools) < apart(model, tools)


def test_the_same_seed_recovers_the_same_model_and_the_fidelity_shortens_it(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    tools, short = tools_for(case, tmp_path), tools_for(case, tmp_path, epochs_share=0.25)
    options = recover.Options(epochs=4)
    once, again = (recover.apply(case.adapter(), options, tools) for _ in range(2))
    pairs = zip(once.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(same(a, b) for a, b in pairs)
    assert recover.apply(case.adapter(), options, short).facts["steps"] == 8
    assert once.facts["steps"] == 32


def test_without_training_rows_it_says_so(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    with pytest.raises(Problem, match="needs training rows") as caught:
        recover.apply(case.adapter(), recover.Options(), tools_for(case, tmp_path, train=None))
    assert caught.value.kind == "unsupported"


def test_a_rate_that_explodes_is_a_divergence(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    model = case.adapter()
    with torch.no_grad():
        next(iter(model.parameters()))[0] = float("inf")
    with pytest.raises(Problem) as caught:
        recover.apply(model, recover.Options(epochs=1), tools_for(case, tmp_path))
    assert caught.value.kind == "diverged"


@pytest.mark.parametrize(("rows", "size"), [(20, 16), (1078, 16), (3000, 32), (5000, 64), (10**6, 128)])
def test_the_batch_size_follows_the_rows(rows: int, size: int) -> None:
    assert fitting(rows) == size
