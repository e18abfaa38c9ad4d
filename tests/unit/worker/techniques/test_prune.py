"""prune: fewer channels, the same function of what is left."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.files import decode, plain
from petra_deploy.worker.model.importance import rounded_width
from petra_deploy.worker.techniques import drop_blocks, prune
from tests.models import CASES, Case

FAMILIES = [name for name, case in CASES.items() if case().layout().of_kind("channels")]


def options(case: Case, ratio: float = 0.6, **more: object) -> prune.Options:
    return prune.Options(ratios={g.name: ratio for g in case.layout().of_kind("channels")}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_shrinks_runs_at_two_batch_sizes_and_stays_untouched(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    model = case.adapter()
    before = copy.deepcopy(model.state_dict())
    applied = prune.apply(model, options(case, round_to=4), case.tools(tmp_path))
    for rows in (1, 5):
        found, wanted = applied.model(*case.tensors(rows)), model(*case.tensors(rows))
        assert [t.shape for t in found] == [t.shape for t in wanted]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    small, large = applied.facts["parameters"][1], applied.facts["parameters"][0]
    assert small == sum(p.numel() for p in applied.model.parameters()) < large
    assert all(after < width for width, after in applied.facts["widths"].values())


def test_removing_channels_that_are_zero_changes_nothing(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    first, norm = case.module.features[0][0], case.module.features[0][1]
    gone = [0, 3, 4, 7, 8, 9, 10, 15]
    with torch.no_grad():
        for tensor in (first.weight, norm.weight, norm.bias, norm.running_mean):
            tensor[gone] = 0
    model = case.adapter()
    applied = prune.apply(model, prune.Options(ratios={"features.0.0": 0.5}, round_to=8), case.tools(tmp_path))
    assert applied.model.inner.features[0][0].out_channels == 8
    torch.testing.assert_close(applied.model(*case.tensors(4)), model(*case.tensors(4)))


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    for importance in ("magnitude_l1", "magnitude_l2", "bn_scale", "lamp", "taylor", "hessian", "random"):
        first, second = (
            prune.apply(case.adapter(), options(case, importance=importance), case.tools(tmp_path)).model.state_dict()
            for _ in range(2)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_widths_are_rounded_up_to_the_step_and_narrow_layers_to_a_part_of_it() -> None:
    assert rounded_width(64, 0.87, 16) == 16
    assert rounded_width(512, 0.87, 16) == 80
    assert rounded_width(512, 0.5, 16) == 256
    assert rounded_width(64, 0.0, 16) == 64
    assert rounded_width(10, 0.7, 1) == 3
    assert rounded_width(24, 0.9, 16) == 8
    assert rounded_width(6, 0.9, 16) == 2
    assert rounded_width(100, 0.01, 16) == 100


def test_blocks_may_be_dropped_before_or_after(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    model, tools = case.adapter(), case.tools(tmp_path)
    drop = drop_blocks.Options(blocks=("stages.0.0", "stages.1.1"))
    first = prune.apply(drop_blocks.apply(model, drop, tools).model, options(case), tools)
    second = drop_blocks.apply(prune.apply(model, options(case), tools).model, drop, tools)
    assert first.facts["gone"] == ["stages.0.0.conv1", "stages.1.1.conv1"]
    assert first.facts["parameters"][1] == second.facts["parameters"][1]


def test_a_group_whose_layers_were_all_dropped_is_passed_over(tmp_path: Path) -> None:
    case = CASES["torch_encoder"]()
    tools = case.tools(tmp_path)
    drop = drop_blocks.Options(blocks=("encoder.layers.0", "encoder.layers.1"))
    bare = drop_blocks.apply(case.adapter(), drop, tools).model
    found = prune.apply(bare, options(case), tools)
    assert "embed" in found.facts["gone"]  # its width is no layer's any more but the table's and the head's own
    with pytest.raises(Problem, match="nothing"):
        prune.apply(bare, prune.Options(ratios={"nothing": 0.5}), tools)


def test_a_tied_weight_that_is_cut_alike_stays_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(32, 4)
            self.right.weight = self.left.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.stem(x))
            return self.left(y) + self.right(y)

    case = Case("tied", Tied().eval(), {"x": (8,)}, {})
    small = prune.apply(case.adapter(), prune.Options(ratios={"stem": 0.5}), case.tools(tmp_path)).model.inner
    assert small.left.weight is small.right.weight
    assert small.left.weight.shape == (4, 16)


@pytest.mark.parametrize(("case", "name"), [("mlp", "nothing"), ("mlp", "4"), ("hand_encoder", "blocks.0.qkv")])
def test_what_cannot_be_pruned_is_a_problem_that_names_it(case: str, name: str, tmp_path: Path) -> None:
    made = CASES[case]()
    with pytest.raises(Problem, match=name):
        prune.apply(made.adapter(), prune.Options(ratios={name: 0.5}), made.tools(tmp_path))


def test_options_survive_json_and_their_ranges_hold() -> None:
    made = prune.Options(ratios={"conv1": 0.5}, round_to=8)
    assert decode(plain(made), prune.Options, "test") == made
    with pytest.raises(Exception, match="ratios"):
        decode({"ratios": {"conv1": 1.5}}, prune.Options, "test")


def test_a_pruned_model_exports_and_agrees_with_itself(tmp_path: Path) -> None:
    import onnxruntime

    case = CASES["cnn"]()
    small = prune.apply(case.adapter(), options(case), case.tools(tmp_path)).model
    torch.onnx.export(small, case.tensors(2), tmp_path / "m.onnx", dynamo=True, input_names=["image"], verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": case.tensors(2)[0].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), small(*case.tensors(2))[0], rtol=1e-3, atol=1e-4)


def test_rounds_end_at_the_widths_of_one_and_train_between(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    tools = case.tools(tmp_path, rows=32)
    once = prune.apply(case.adapter(), options(case, 0.75, round_to=4), tools)
    model = case.adapter()
    before = copy.deepcopy(model.state_dict())
    thrice = prune.apply(model, options(case, 0.75, round_to=4, rounds=3, epochs_between=1.0), tools)
    assert thrice.facts["widths"] == once.facts["widths"]
    assert thrice.facts["parameters"] == once.facts["parameters"]
    assert len(thrice.facts["losses_between"]) == 2
    assert not once.facts["losses_between"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    shapes = [{k: v.shape for k, v in applied.model.state_dict().items()} for applied in (once, thrice)]
    assert shapes[0] == shapes[1]


def test_rounds_without_training_rows_are_a_problem(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    with pytest.raises(Problem) as problem:
        prune.apply(case.adapter(), options(case, rounds=2), case.tools(tmp_path, train=None))
    assert problem.value.kind == "unsupported"
    assert "training rows" in problem.value.reason


class Sized(nn.Module):
    """Its width stands beside its weights, too."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)).view(-1, self.width))


def test_a_number_that_is_the_width_follows_it(tmp_path: Path) -> None:
    case = Case("sized", Sized().eval(), {"x": (6,)}, {})
    assert [group.name for group in case.layout().of_kind("channels")] == ["first"]
    applied = prune.apply(case.adapter(), prune.Options(ratios={"first": 0.5}, round_to=1), case.tools(tmp_path))
    assert applied.model.inner.width == 8
    assert applied.model(*case.tensors(5))[0].shape == (5, 3)
    assert case.module.width == 16


def test_a_stream_of_zeros_goes_first_through_embeddings_norms_and_attention(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    gone = list(range(0, 32, 2))
    module = case.module
    with torch.no_grad():
        for table in (module.embed, module.position):
            table.weight[:, gone] = 0
        for block in module.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight[gone], norm.bias[gone] = 0, 0
            for layer in (block.proj, block.down):
                layer.weight[gone], layer.bias[gone] = 0, 0
        module.norm.weight[gone], module.norm.bias[gone] = 0, 0
    applied = prune.apply(case.adapter(), prune.Options(ratios={"embed": 0.5}, round_to=16), case.tools(tmp_path))
    torch.testing.assert_close(applied.model.inner.embed.weight, module.embed.weight[:, 1::2])
    torch.testing.assert_close(applied.model.inner.head.weight, module.head.weight[:, 1::2])
    assert applied.model.inner.blocks[0].qkv.weight.shape == (96, 16)  # heads stay as they are
