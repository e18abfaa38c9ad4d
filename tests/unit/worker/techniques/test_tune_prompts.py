"""Prompts are found a place by trying, act on every row, leave the outputs' shapes, and ship in the graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import parity, prompts
from petra_deploy.worker.model.adapter import Adapter, submodule
from petra_deploy.worker.model.export import export
from petra_deploy.worker.model.trial import Trial, outputs
from petra_deploy.worker.techniques import drop_blocks, prune, tune_prompts
from tests.models import CASES

OPTIONS = tune_prompts.Options(tokens=3, epochs=1, lr=0.05)


class Second(nn.Module):
    """Rows come second, and the padding mask is True where a token is left out: torch's own defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x.transpose(0, 1), src_key_padding_mask=x[..., 0] > 1)
        return self.head(hidden.mean(0))


class Square(nn.Module):
    """Its layers are given a mask of tokens by tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, mask=torch.ones(7, 7).tril() == 0).mean(1)


class Apart(nn.Module):
    """Layers that treat each token alone: what is put before the others does not reach them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(1)


def given(module: nn.Module) -> Trial:
    torch.manual_seed(0)
    return Trial(Adapter(module, ("x",)).eval(), (torch.randn(4, 7, 16),))


@pytest.mark.parametrize("name", ["torch_encoder", "hand_encoder"])
def test_only_prompts_are_trained_and_the_exported_graph_has_them(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    before, tools = case.adapter(), case.tools(tmp_path, rows=32)
    applied = tune_prompts.apply(before, OPTIONS, tools)
    after = applied.model
    named = dict(after.named_parameters())
    [added] = named.keys() - dict(before.named_parameters()).keys()
    assert all(torch.equal(p, named[key]) for key, p in before.named_parameters())
    assert named[added].shape == (3, dict(before.named_parameters())["inner.embed.weight"].shape[1])
    assert applied.facts["length"] == [12, 15]
    signature, path = case.signature(), tmp_path / "model.onnx"
    batches = [dict(zip(case.shapes, (t.numpy() for t in case.tensors(n)), strict=True)) for n in (1, 3)]
    export(after, signature, case.tensors(2), path)
    expected, found = parity.run_module(after, signature, batches), parity.run_file(path, batches)
    parity.compare(expected, found, signature, parity.EXACT)
    assert not np.allclose(expected[1][0], parity.run_module(before, signature, batches)[1][0], atol=1e-3)


def test_prompts_equal_to_more_tokens_in_front() -> None:
    """The definition: an encoder over (prompts, tokens), without what comes of the prompts."""
    tried = given(Second())
    [encoder], refused = prompts.encoders(tried)
    assert not refused
    assert (encoder.axis, encoder.length) == (0, 7)
    model = tried.model
    x = torch.randn(3, 7, 16)
    inner = model.inner
    prompts.install(model, encoder, 4, tried.feeds[0])
    found = outputs(model, (x,))[0]
    words = submodule(model, encoder.layers[0]).prompts
    bare = Second().eval()
    bare.load_state_dict({k: v for k, v in inner.state_dict().items() if "prompts" not in k})
    longer = torch.cat([words.unsqueeze(1).expand(-1, 3, -1), x.transpose(0, 1)])
    ignored = torch.cat([torch.zeros(3, 4, dtype=torch.bool), x[..., 0] > 1], 1)
    with torch.no_grad():
        expected = bare.head(bare.encoder(longer, src_key_padding_mask=ignored)[4:].mean(0))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("make", "why"), [(Square, "tokens by tokens"), (Apart, "do not depend on prompts")])
def test_where_prompts_have_no_place_it_says_why(make: type[nn.Module], why: str) -> None:
    found, refused = prompts.encoders(given(make()))
    assert not found
    assert why in next(iter(refused.values()))


@pytest.mark.parametrize("name", ["resnet", "lstm", "inception", "mlp", "shared", "dicts"])
def test_models_without_an_encoder_are_refused_in_words(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    with pytest.raises(Problem, match="prompts have no place") as caught:
        tune_prompts.apply(case.adapter(), OPTIONS, case.tools(tmp_path))
    assert caught.value.kind == "unsupported"
    assert tune_prompts.obstacles(case.layout(), None)  # type: ignore[arg-type]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    case = CASES["torch_encoder"]()
    other = case.adapter()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    options = tune_prompts.Options(tokens=4, epochs=6, lr=0.05)
    losses = tune_prompts.apply(other, options, case.tools(tmp_path, rows=64)).facts["losses"]
    assert isinstance(losses, list)
    assert losses[-1] < losses[0]


def test_an_encoder_that_was_pruned_before_takes_prompts(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    tools = case.tools(tmp_path)
    small = prune.apply(case.adapter(), prune.Options(ratios={"embed": 0.5}), tools).model
    found = tune_prompts.apply(small, OPTIONS, tools)
    assert found.facts["length"] == [12, 15]
    assert outputs(found.model, case.tensors(3))[0].shape == (3, 4)


def test_an_encoder_whose_layers_are_all_gone_is_passed_over_and_facts_say_so(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    tools = case.tools(tmp_path)
    bare = drop_blocks.apply(case.adapter(), drop_blocks.Options(blocks=("blocks.0", "blocks.1")), tools).model
    found = tune_prompts.apply(bare, OPTIONS, tools)
    assert "no encoder" in found.facts["passed_over"]
    assert torch.equal(outputs(found.model, case.tensors(3))[0], outputs(bare, case.tensors(3))[0])
