"""What the layout of a model tells: operators, sizes, and groups that hold."""

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.workload import BATCH, Signature, TensorSpec
from petra_deploy.worker.jobs._techniques import finders
from petra_deploy.worker.model import channels
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.model.layout import layout
from petra_deploy.worker.model.trial import Trial, imagined, outputs, shapes
from tests.models import CASES, Case


def names(case: str, kind: str) -> set[str]:
    return {group.name for group in CASES[case]().layout().of_kind(kind)}


def test_operators_are_counted_by_class_and_sizes_are_those_of_the_weights() -> None:
    case = CASES["resnet"]()
    facts = case.layout()
    assert facts.operators == {"BatchNorm2d": 20, "Conv2d": 20, "Linear": 1}
    assert facts.parameters == sum(p.numel() for p in case.module.parameters())
    assert facts.bytes == 4 * sum(t.numel() for t in case.module.state_dict().values() if t.is_floating_point())


def test_the_largest_weight_of_each_class_is_told() -> None:
    assert CASES["mlp"]().layout().largest == {"Linear": 64 * 64}
    assert CASES["lstm"]().layout().largest == {"LSTM": 4 * 24 * 24, "Linear": 24 * 4}


def test_imagined_shapes_are_those_of_the_real_pass_and_faults_are_left_to_it() -> None:
    for name in ("resnet", "gru_both_ways", "torch_encoder", "dicts"):
        case = CASES[name]()
        model, example = case.adapter(), case.tensors(3)
        assert imagined(model, example) == shapes(outputs(model, example))
    assert imagined(nn.Linear(4, 2), (torch.zeros(1, 5),)) == ()


def test_what_a_forward_pass_keeps_is_never_imagined() -> None:
    class Caching(nn.Module):
        table = None

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            if self.table is None:
                self.table = torch.arange(x.shape[1]).sin()
            return (x * self.table,)

    model = Caching()
    assert imagined(model, (torch.ones(2, 5),)) == ((2, 5),)
    assert model.table is None
    assert torch.equal(model(torch.ones(2, 5))[0][0], torch.arange(5).sin())


def test_blocks_of_a_slow_model_are_found_by_imagined_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {kind: names("resnet", kind) for kind in ("block", "channels")}
    monkeypatch.setattr("petra_deploy.worker.model.trial.SLOW", 0.0)
    assert {kind: names("resnet", kind) for kind in expected} == expected
    tried = Trial(CASES["resnet"]().adapter(), CASES["resnet"]().tensors(4))
    assert tried.slow
    narrow = CASES["resnet"]().adapter()
    narrow.inner.fc = nn.Linear(64, 10)
    assert "fails" in str(tried.breaks(narrow))


def test_channels_that_meet_in_a_residual_sum_are_one_group() -> None:
    found = {group.name: group for group in CASES["resnet"]().layout().of_kind("channels")}
    assert found["conv1"].width == 16
    assert "stages.0.0.conv2" not in found  # added to the stem's channels
    assert "stages.0.0.conv1" in found  # inside the block, free


def test_the_layer_that_makes_the_outputs_is_protected() -> None:
    facts = CASES["resnet"]().layout()
    assert "fc" not in {group.name for group in facts.groups}
    assert "channels/fc" in facts.refused


def test_depthwise_channels_go_with_those_that_feed_them() -> None:
    found = names("mobilenet", "channels")
    assert "blocks.1.body.0" in found
    assert "blocks.1.body.3" not in found  # the depthwise convolution


@pytest.mark.parametrize("case", ["torch_encoder", "hand_encoder"])
def test_of_a_transformer_the_stream_the_feed_forward_widths_and_the_heads_are_offered(case: str) -> None:
    facts = CASES[case]().layout()
    offered = [group.name.rsplit(".", 1)[-1] for group in facts.of_kind("channels")]
    assert offered in (["embed", "linear1", "linear1"], ["embed", "up", "up"])  # one feed-forward a layer
    assert [group.width for group in facts.of_kind("heads")] == [2, 2]
    assert all(group.macs and group.parameters for group in facts.groups if group.kind in ("channels", "heads"))


def test_parts_of_a_concat_are_groups_of_their_own() -> None:
    assert {"blocks.0.convs.0", "blocks.0.convs.1", "blocks.0.convs.2", "blocks.0.pool.1"} <= names(
        "inception", "channels"
    )


class Shuffled(nn.Module):
    """Channel order matters: neighbours are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(torch.relu(y.view(len(y), -1, 2).sum(2)))


class Rolled(nn.Module):
    """Runs at any width, yet each channel is weighed by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(y * torch.linspace(0, 1, y.shape[1], device=y.device))


@pytest.mark.parametrize("module", [Shuffled(), Rolled()])
def test_channels_whose_order_matters_are_refused_with_the_reason(module: nn.Module) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(BATCH, 4)),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=(BATCH, 3)),),
    )
    facts = layout(Adapter(module, ("x",)).eval(), (torch.randn(2, 4),), "module", signature, finders())
    assert facts.of_kind("channels") == ()
    assert facts.refused["channels/first"]


def test_residual_blocks_and_encoder_layers_are_removable_strided_ones_and_layers_in_them_are_not() -> None:
    assert names("resnet", "block") == {"stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1", "stages.3.1"}
    assert names("torch_encoder", "block") == {"encoder.layers.0", "encoder.layers.1"}
    assert names("hand_encoder", "block") == {"blocks.0", "blocks.1"}
    assert names("mlp", "block") == {"0", "2"}  # hidden layers that give what they get
    assert names("inception", "block").isdisjoint({"blocks.0.convs.0", "blocks.0.pool.1"})


def test_recurrent_layers_are_groups_of_units() -> None:
    for case in ("lstm", "gru_mean", "gru_both_ways", "lstm_hidden", "rnn", "events"):
        assert names(case, "units") == {"rnn"}, case


def test_macs_and_parameters_of_a_group_are_those_of_the_layers_that_make_it() -> None:
    group = next(g for g in CASES["mlp"]().layout().of_kind("channels") if g.name == "0")
    assert (group.width, group.parameters, group.macs) == (64, 64 * 64 + 64, 64 * 64)


def test_the_model_comes_out_as_it_went_in() -> None:
    case = CASES["torch_encoder"]()
    model = case.adapter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layout(model, case.tensors(4), "module", case.signature(), finders())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all("forward" not in vars(m) for m in model.modules())


def test_frozen_weights_do_not_hide_groups() -> None:
    case = CASES["cnn"]()
    case.module.requires_grad_(False)
    assert len(case.layout().of_kind("channels")) == 3


def test_a_layer_whose_weight_is_computed_is_refused_and_left_as_it_is() -> None:
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    module = nn.Sequential(weight_norm(nn.Linear(4, 16)), nn.ReLU(), nn.Linear(16, 3)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    case = Case("normed", module, {"x": (4,)}, {})
    assert "is computed" in case.layout().refused["channels/0"]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_model_that_takes_one_batch_size_only_still_has_groups() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.first(x.view(4, 6))))

    signature = Signature(inputs=(), outputs=())
    facts = layout(Adapter(Fixed(), ("x",)).eval(), (torch.randn(4, 6),), "module", signature, finders())
    assert [group.name for group in facts.groups] == ["first"]


class MapAttention(nn.Module):
    """Attention over a feature map, in views that torch_pruning follows round and round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, width, high, wide = x.shape
        q, k, v = self.qkv(x).view(rows, 3, 4, width // 4, high * wide).unbind(1)
        shares = (q.transpose(-2, -1) @ k).softmax(-1)
        y = (v @ shares.transpose(-2, -1)).reshape(rows, width, high, wide)
        return self.head((x + self.proj(y)).mean((2, 3)))


def test_channels_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PATIENCE", 0.3)
    case = Case("map", MapAttention().eval(), {"image": (1, 8, 8)}, {})
    assert "come back to themselves" in case.layout().refused["channels/qkv"]
