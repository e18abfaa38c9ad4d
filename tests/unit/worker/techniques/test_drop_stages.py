"""drop_stages: shapes stay, and the stand-in is the closest that its form permits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.model import adapter, parity
from petra_deploy.worker.techniques import drop_blocks, drop_stages
from tests.models import CASES, Case


def stages(case: Case) -> tuple[str, ...]:
    return tuple(g.name for g in case.layout().of_kind("stage"))


def dropped(case: Case, tmp_path: Path, *names: str, **options: Any) -> Any:
    return drop_stages.apply(case.adapter(), drop_stages.Options(stages=names, **options), case.tools(tmp_path))


@pytest.mark.parametrize("channels", ["mix", "pad"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "inception", "cnn"])
def test_the_model_runs_without_any_of_its_stages(name: str, channels: str, tmp_path: Path) -> None:
    case = CASES[name]()
    result = dropped(case, tmp_path, *stages(case), channels=channels)
    for rows in (1, 5):
        assert [t.shape for t in result.model(*case.tensors(rows))] == [
            t.shape for t in case.adapter()(*case.tensors(rows))
        ]
    assert result.facts["parameters"][1] < result.facts["parameters"][0]


def test_stages_and_the_blocks_that_change_shapes_are_offered() -> None:
    assert stages(CASES["resnet"]()) == (
        "stages.0", "stages.1.0", "stages.1", "stages.2.0", "stages.2", "stages.3.0", "stages.3",
    )  # fmt: skip
    assert stages(CASES["mobilenet"]()) == ("stem", "blocks.1")  # "last" is a 1x1 convolution itself


def test_the_1x1_is_the_least_squares_fit_of_what_the_stage_gave_of_its_pooled_input(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    result = dropped(case, tmp_path, "stages.1")
    (image,) = (torch.from_numpy(v) for v in case.samples(16).inputs.values())
    with torch.no_grad():
        x = torch.relu(case.module.bn1(case.module.conv1(image)))
        x = case.module.stages[0](x)
        y = case.module.stages[1](x).movedim(1, -1).reshape(-1, 32).numpy()
    pooled = nn.functional.avg_pool2d(x, 2).movedim(1, -1).reshape(-1, 16).numpy()
    rows = np.concatenate([pooled, np.ones((len(pooled), 1))], 1)
    wanted, *_ = np.linalg.lstsq(rows, y, rcond=None)
    through = adapter.submodule(result.model, "stages.1")
    np.testing.assert_allclose(through.mix.weight.detach().numpy()[..., 0, 0].T, wanted[:-1], atol=0.02)
    left = ((rows @ wanted - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert result.facts["dropped"]["stages.1"]["fit"] == pytest.approx(1 - left, abs=1e-3)


def test_padded_channels_are_zero_and_carry_no_weights(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    through = adapter.submodule(dropped(case, tmp_path, "stages.2.0", channels="pad").model, "stages.2.0")
    x = torch.randn(2, 32, 8, 8)
    assert not list(through.parameters())
    torch.testing.assert_close(through(x)[:, :32], nn.functional.avg_pool2d(x, 2))
    assert not through(x)[:, 32:].any()


def test_the_artifact_is_its_module_and_pruning_reaches_the_stand_ins(tmp_path: Path) -> None:
    case, store = CASES["resnet"](), Store(tmp_path)
    ratios = {g.name: 0.5 for g in case.layout().of_kind("channels")}
    for channels in ("mix", "pad"):
        steps = (
            Step(technique="drop_blocks", options={"blocks": ["stages.2.1", "stages.3.1"]}),
            Step(technique="drop_stages", options={"stages": ["stages.1", "stages.2.0"], "channels": channels}),
            Step(technique="prune", options={"ratios": ratios, "round_to": 4}),
        )
        graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy(steps=steps)))
        widths = graph.facts["prune"]["widths"]
        if channels == "mix":
            assert widths["stages.1.mix"] == [32, 16]
            assert widths["stages.2.0.mix"] == [64, 32]
        assert widths["stages.3.0.conv2"] == [128, 64]
        feeds = {n: v[:3] for n, v in case.samples(3).inputs.items()}
        assert len(parity.run_file(store.path(graph.key) / "model.onnx", [feeds])[0][0]) == 3


def test_a_stage_inside_another_or_in_one_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    first = dropped(case, tmp_path, "stages.1", "stages.1.0")
    assert first.facts["passed_over"] == ["stages.1.0"]
    again = drop_stages.apply(first.model, drop_stages.Options(stages=("stages.1.0",)), case.tools(tmp_path))
    assert again.facts["passed_over"] == ["stages.1.0"]
    assert not again.facts["dropped"]
    after = drop_blocks.apply(first.model, drop_blocks.Options(blocks=("stages.0.1",)), case.tools(tmp_path))
    assert after.facts["dropped"] == ["stages.0.1"]


class Merge(nn.Module):
    """A stage of a hierarchical transformer, channels last: half of the steps, twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width)
        self.feed = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1)))
        return x + self.feed(x)


class Strided(nn.Module):
    """17 steps become 9, then shrink by a window without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv1d(2, 8, 3, 2, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down2(self.down1(x)).mean(2))


@pytest.mark.parametrize(
    ("module", "shape", "channels", "pools"),
    [
        (
            lambda: nn.Sequential(Merge(4), Merge(8), nn.Linear(16, 2)),
            (12, 4),
            [[4, 8], [8, 16]],
            [[[2, 2, 0]], [[2, 2, 0]]],
        ),
        (Strided, (2, 17), [[2, 8], [8, 4]], [[[2, 2, 0]], [[3, 1, 0]]]),
    ],
)
def test_sequences_and_odd_sizes(module: Any, shape: Any, channels: Any, pools: Any, tmp_path: Path) -> None:
    case = Case("sequence", module().eval(), {"x": shape}, {})
    for how in ("mix", "pad"):
        result = dropped(case, tmp_path, *stages(case), channels=how)
        assert [d["channels"] for d in result.facts["dropped"].values()] == channels
        assert [d["pool"] for d in result.facts["dropped"].values()] == pools
        assert result.model(*case.tensors(3))[0].shape == case.module(*case.tensors(3)).shape


class AnySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((1, 4), (4, 8))
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_where_sizes_are_not_fixed_the_stand_in_follows_odd_ones_too(tmp_path: Path) -> None:
    from dataclasses import replace

    case = Case("any", AnySize().eval(), {"x": (1, 8, 8)}, {})
    signature = case.signature()
    free = tuple(replace(s, shape=("batch", s.shape[1], "h", "w")) for s in (*signature.inputs, *signature.outputs))
    tools = case.tools(tmp_path, signature=replace(signature, inputs=free[:1], outputs=free[1:]))
    options = drop_stages.Options(stages=("layers.0", "layers.1"))
    small = drop_stages.apply(case.adapter(), options, tools).model
    for size in (1, 8, 9, 11, 14):
        x = torch.randn(2, 1, size, size + 1)
        assert small(x)[0].shape == case.module(x).shape


class Up(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.ConvTranspose2d(4, 2, 2, 2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten()),
        )


@pytest.mark.parametrize(("name", "why"), [("1", "no pooling"), ("2", "other dimensions"), ("7", "no stage")])
def test_what_has_no_stand_in_is_refused_in_words(name: str, why: str, tmp_path: Path) -> None:
    case = Case("up", Up().eval(), {"x": (1, 8, 8)}, {})
    assert stages(case) == ("0",)
    assert "no pooling" in case.layout().refused["stage/1"]
    with pytest.raises(Problem, match=why):
        dropped(case, tmp_path, name)
