"""worker/model/attention: rewritten exactly, read by trying, cut as if silenced."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule
from petra_deploy.worker.model.attention.heads import Heads, keep_heads
from petra_deploy.worker.model.attention.loose import loosened
from petra_deploy.worker.model.attention.pins import pinned
from petra_deploy.worker.model.attention.plain import Attention, plain
from petra_deploy.worker.model.trial import Trial, outputs
from tests.attentions import ATTENTIONS, HEADS, WRITTEN
from tests.models import CASES


class Asks(nn.Module):
    """An nn.MultiheadAttention of its own sizes, called with chosen arguments."""

    def __init__(self, batch_first: bool, sizes: int | None = None, **call: Any) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(12, 3, batch_first=batch_first, kdim=sizes, vdim=sizes)
        nn.init.normal_(self.attend.in_proj_bias)
        self.call = call

    def forward(self, query: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        answer, weights = self.attend(query, other, other, **self.call)
        return (answer,) if weights is None else (answer, weights)


def asked(module: nn.Module, *tensors: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What the module answers, and what it answers after the rewrite."""
    module.eval()
    rewritten = plain(module, Trial(module, tensors))
    assert any(isinstance(m, Attention) for m in rewritten.modules())
    return outputs(module, tensors), outputs(rewritten, tensors)


@pytest.mark.parametrize(("batch_first", "weights", "average"), list(itertools.product((True, False), repeat=3)))
def test_the_rewrite_answers_as_torch_does_with_every_mask(batch_first: bool, weights: bool, average: bool) -> None:
    torch.manual_seed(0)
    query, other = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    if not batch_first:
        query, other = torch.randn(4, 2, 12), torch.randn(5, 2, 12)
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    causal = torch.ones(4, 5, dtype=torch.bool).triu(1)
    masks: list[dict[str, Any]] = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": torch.randn(6, 4, 5), "key_padding_mask": padding.float() * -9},
    ]
    for mask in masks:
        call = {"need_weights": weights, "average_attn_weights": average, **mask}
        before, after = asked(Asks(batch_first, **call), query, other)
        assert len(before) == len(after) == 1 + weights
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b)


def test_the_rewrite_takes_other_sizes_of_keys_and_inputs_without_rows() -> None:
    torch.manual_seed(0)
    for query, other in [(torch.randn(2, 4, 12), torch.randn(2, 5, 7)), (torch.randn(4, 12), torch.randn(5, 7))]:
        before, after = asked(Asks(True, 7), query, other)
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b)


def test_a_layer_used_twice_stays_one_and_the_input_is_untouched() -> None:
    layer = nn.MultiheadAttention(12, 3, batch_first=True)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer, layer

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.second(*[self.first(x, x, x)[0]] * 3)[0],)

    model, x = Twice().eval(), torch.randn(2, 4, 12)
    rewritten = plain(model, Trial(model, (x,)))
    assert rewritten.first is rewritten.second
    assert model.first is layer
    torch.testing.assert_close(outputs(model, (x,)), outputs(rewritten, (x,)))


def test_what_torch_alone_can_do_is_left_to_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(12, 3, add_zero_attn=True)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.attend(x, x, x)[0],)

    model = Odd().eval()
    assert plain(model, Trial(model, (torch.randn(2, 4, 12),))) is model


def silenced(model: nn.Module, heads: Heads, gone: Sequence[int]) -> nn.Module:
    """`model` with zeros in the columns of the output projection that read these heads."""
    copied = surgery.own(model)
    place = next(p for p in heads.coupling.places if p.side == "in")
    with torch.no_grad():
        for head in gone:
            submodule(copied, place.layer).weight[:, list(place.positions[head])] = 0
    return copied


@pytest.mark.parametrize("name", [*ATTENTIONS, "hand_encoder", "torch_encoder"])
def test_a_model_without_some_heads_is_the_model_with_them_silenced(name: str) -> None:
    case = {**ATTENTIONS, **CASES}[name]()
    model = case.adapter().double()
    feeds = tuple(t.double() if t.is_floating_point() else t for t in case.tensors(3))
    loose = loosened(model, Trial(model, feeds))
    torch.testing.assert_close(outputs(loose.model, feeds), outputs(model, feeds))
    assert loose.heads
    for heads in loose.heads:
        assert heads.coupling.width == {"grouped": 2, "hand_encoder": 2, "torch_encoder": 2}.get(name, HEADS)
        for gone in ([0], [heads.coupling.width - 1], list(range(1, heads.coupling.width))):
            small = surgery.twin(loose.model)
            keep_heads(small, {heads: [h for h in range(heads.coupling.width) if h not in gone]})
            assert surgery.size(small) < surgery.size(model)
            torch.testing.assert_close(
                outputs(small, feeds), outputs(silenced(loose.model, heads, gone), feeds), rtol=0, atol=1e-12
            )


def test_heads_that_no_number_counts_are_not_offered_and_the_stream_around_them_is() -> None:
    layout = WRITTEN().layout()
    assert not layout.of_kind("heads")
    assert "channels/attention.q" in layout.refused
    assert "embed" in [group.name for group in layout.of_kind("channels")]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_stream_around_attention_is_one_group(name: str) -> None:
    groups = {group.name: group for group in ATTENTIONS[name]().layout().of_kind("channels")}
    assert {name: group.width for name, group in groups.items()} == {"embed": 16, "mlp.0": 32}


def test_a_pinned_module_sees_its_own_width_and_computes_what_it_did_on_zeros() -> None:
    """Half of the stream gone is as half of it zero, but for the norms: the attention alone is compared."""
    case = ATTENTIONS["fused"]()
    model = case.adapter()
    loose = loosened(model, Trial(model, case.tensors(3)))
    attention = submodule(loose.model, "attention")
    assert pinned(attention)
    assert not pinned(submodule(model, "attention"))
    x = torch.randn(2, 5, 16)
    x[..., 8:] = 0
    wanted = attention(x)
    surgery.select(attention, {("qkv", "in", None): torch.arange(8)})
    torch.testing.assert_close(attention(x[..., :8]), wanted)
