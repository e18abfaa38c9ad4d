"""prune_heads: whole heads go, the least important first."""

from pathlib import Path

import numpy as np
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.model.trial import outputs
from petra_deploy.worker.techniques import drop_blocks, low_rank, prune, prune_heads
from tests.attentions import ATTENTIONS
from tests.models import CASES


def test_a_head_that_says_nothing_goes_first_and_changes_nothing(tmp_path: Path) -> None:
    case = ATTENTIONS["fused"]()
    attention = case.module.attention
    with torch.no_grad():
        for row in (1, 2):  # of four heads of four channels
            attention.proj.weight[:, 4 * row : 4 * row + 4] = 0
            attention.qkv.weight[32 + 4 * row : 36 + 4 * row] = 0
    model = case.adapter()
    for importance in ("magnitude_l1", "magnitude_l2", "taylor", "hessian"):
        options = prune_heads.Options(ratios={"attention": 0.5}, importance=importance)
        applied = prune_heads.apply(model, options, case.tools(tmp_path))
        assert applied.facts["kept"] == {"attention": [0, 3]}
        assert applied.facts["heads"] == {"attention": [4, 2]}
        torch.testing.assert_close(applied.model(*case.tensors(4)), model(*case.tensors(4)))


@pytest.mark.parametrize("name", ["causal", "torch"])
def test_fewer_heads_in_a_narrower_stream_export_and_agree(name: str, tmp_path: Path) -> None:
    case = ATTENTIONS[name]()
    groups = case.layout()
    tools = case.tools(tmp_path)
    heads = {group.name: 0.5 for group in groups.of_kind("heads")}
    channels = {group.name: 0.5 for group in groups.of_kind("channels")}
    small = prune_heads.apply(case.adapter(), prune_heads.Options(ratios=heads), tools).model
    small = prune.apply(small, prune.Options(ratios=channels, round_to=4), tools).model
    assert small.inner.head.in_features == 8
    export(small, case.signature(), case.tensors(2), tmp_path / "small.onnx")
    for rows in (1, 3):
        feeds = case.tensors(rows)
        found = parity.run_file(tmp_path / "small.onnx", [{"x": feeds[0].numpy()}])[0]
        np.testing.assert_allclose(found[0], outputs(small, feeds)[0].numpy(), atol=1e-5)


def test_heads_of_a_dropped_block_are_passed_over(tmp_path: Path) -> None:
    case = CASES["torch_encoder"]()
    tools = case.tools(tmp_path)
    ratios = {group.name: 0.9 for group in case.layout().of_kind("heads")}
    small = drop_blocks.apply(case.adapter(), drop_blocks.Options(blocks=("encoder.layers.0",)), tools).model
    applied = prune_heads.apply(small, prune_heads.Options(ratios=ratios), tools)
    assert applied.facts["gone"] == ["encoder.layers.0.self_attn"]
    assert applied.facts["heads"] == {"encoder.layers.1.self_attn": [2, 1]}


def test_a_name_without_heads_is_a_problem_that_names_those_there_are(tmp_path: Path) -> None:
    case = ATTENTIONS["split"]()
    with pytest.raises(Problem) as problem:
        prune_heads.apply(case.adapter(), prune_heads.Options(ratios={"mlp": 0.5}), case.tools(tmp_path))
    assert problem.value.kind == "unsupported"
    assert "attention" in problem.value.hint


def test_heads_of_projections_that_were_factored_are_cut_all_the_same(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    tools = case.tools(tmp_path)
    levels = {f"blocks.{i}.{name}": 0.7 for i in range(2) for name in ("qkv", "proj")}
    thin = low_rank.apply(case.adapter(), low_rank.Options(levels=levels, select="ratio"), tools)
    assert set(thin.facts["ranks"]) == set(levels)
    found = prune_heads.apply(thin.model, prune_heads.Options(ratios={"blocks.0": 0.5, "blocks.1": 0.5}), tools)
    assert found.facts["heads"] == {"blocks.0": [2, 1], "blocks.1": [2, 1]}
    assert found.model.inner.blocks[0].qkv.second.weight.shape[0] == 48
    assert found.model.inner.blocks[0].proj.first.weight.shape[1] == 16
    assert found.model(*case.tensors(3))[0].shape == (3, 4)
