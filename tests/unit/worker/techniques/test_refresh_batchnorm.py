"""Fresh BatchNorm statistics are the plain mean over the calibration batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.worker.techniques import refresh_batchnorm
from petra_deploy.worker.techniques.refresh_batchnorm import Options
from tests.models import CASES
from tests.unit.worker.techniques.test_recover import tools_for


def test_running_mean_is_the_plain_mean_over_the_batches(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    tools = tools_for(case, tmp_path, rows=48)
    model = case.adapter()
    seen: list[torch.Tensor] = []
    first = next(m for m in model.modules() if isinstance(m, _BatchNorm))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    before = first.running_mean.clone()  # type: ignore[union-attr]
    applied = refresh_batchnorm.apply(model, Options(batches=2, batch_size=16), tools)
    after = next(m for m in applied.model.modules() if isinstance(m, _BatchNorm))
    assert len(seen) == 2
    assert torch.allclose(after.running_mean, torch.stack(seen).mean(dim=0), atol=1e-6)  # type: ignore[arg-type]
    assert after.momentum == first.momentum
    assert torch.equal(first.running_mean, before)  # type: ignore[arg-type]
    assert not applied.model.training
    assert applied.facts["norms_refreshed"] == sum(isinstance(m, _BatchNorm) for m in model.modules())


def test_rows_that_fill_no_batch_are_left_out(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    tools = tools_for(case, tmp_path, rows=33)
    odd = refresh_batchnorm.apply(case.adapter(), Options(batch_size=16), tools).model
    even = refresh_batchnorm.apply(case.adapter(), Options(batches=2, batch_size=16), tools).model
    pairs = zip(odd.state_dict().values(), even.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_one_row_has_no_variance(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    tools = tools_for(case, tmp_path)
    one = replace(tools, calibration=Samples({k: v[:1] for k, v in tools.calibration.inputs.items()}))
    with pytest.raises(Problem, match="two calibration rows"):
        refresh_batchnorm.apply(case.adapter(), Options(), one)
