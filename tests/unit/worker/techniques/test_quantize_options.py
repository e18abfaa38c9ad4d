"""The graph quantizers' options, each against its definition: granularity, percentile, float parts, biases, islands."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from petra_deploy.worker.artifact import settle
from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.model import parity
from petra_deploy.worker.techniques import _ort_bias, quantize_dynamic, quantize_ort
from petra_deploy.worker.techniques._ort_static import Static
from tests.models import CASES, Case
from tests.unit.worker.techniques.graphs import exported, follows, inside
from tests.unit.worker.techniques.outliers import CULPRIT, spoiled

FAMILIES = ["cnn", "mobilenet", "inception", "hand_encoder", "torch_encoder", "lstm", "mlp", "two_inputs", "events"]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_weight_is_unpacked_at_each_call(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    applied = quantize_ort.apply(exported(case, tmp_path), quantize_ort.Options(), case.tools(tmp_path))
    assert settle.unpacked(optimized(applied.model)) == {}
    follows(case, applied.model)


def test_linear_layers_of_an_encoder_are_one_integer_node_each_and_nothing_else_is_rounded(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    applied = quantize_ort.apply(exported(case, tmp_path), quantize_ort.Options(), case.tools(tmp_path))
    found = Counter(node.op_type for node in optimized(applied.model).graph.node)
    assert found["MatMulIntegerToFloat"] == 9  # four a layer, and the head
    assert not found["DequantizeLinear"]
    assert not {"QLinearMatMul", "QLinearAdd"} & set(found)


def test_linear_layers_in_a_row_pass_integers_on(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    applied = quantize_ort.apply(exported(case, tmp_path), quantize_ort.Options(), case.tools(tmp_path))
    found = Counter(node.op_type for node in optimized(applied.model).graph.node)
    assert found == {"QuantizeLinear": 1, "QGemm": 2, "MatMulIntegerToFloat": 1}


@pytest.mark.parametrize(("granularity", "scales"), [("channel", 16), ("tensor", 1)])
def test_a_weight_has_a_scale_for_each_channel_or_one(granularity: Any, scales: int, tmp_path: Path) -> None:
    case = CASES["cnn"]()
    options = quantize_ort.Options(granularity=granularity)
    applied = quantize_ort.apply(exported(case, tmp_path), options, case.tools(tmp_path))
    model = onnx.load(applied.model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    first = next(
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and constants.get(n.input[0], np.empty(0)).ndim == 4
    )
    assert constants[first.input[1]].size == scales
    follows(case, applied.model)


def test_a_percentile_leaves_out_the_values_beyond_it(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    scales = {}
    for percentile in (100.0, 90.0):
        options = quantize_ort.Options(method="percentile", percentile=percentile)
        tools = case.tools(inside(tmp_path, str(percentile)), rows=64)
        scales[percentile] = _scale_of_input(quantize_ort.apply(exported(case, tmp_path), options, tools).model)
    values = case.samples(64).inputs["x"]
    assert scales[100.0] * 255 == pytest.approx(values.max() - values.min(), rel=0.1)
    assert scales[90.0] < 0.7 * scales[100.0]


@pytest.mark.parametrize(
    ("technique", "operator"), [(quantize_ort, "QLinearConv"), (quantize_dynamic, "DynamicQuantizeMatMul")]
)
def test_named_parts_stay_in_float_and_the_others_do_not(technique: Any, operator: str, tmp_path: Path) -> None:
    case, part = (CASES["cnn"](), "features.1") if technique is quantize_ort else (CASES["mlp"](), "2")
    counts = []
    for kept in ((), (part,)):
        tools = case.tools(inside(tmp_path, f"{len(kept)}"))
        applied = technique.apply(exported(case, tmp_path), technique.Options(keep_float=kept), tools)
        counts.append(Counter(node.op_type for node in optimized(applied.model).graph.node))
        follows(case, applied.model)
    assert counts[0][operator] == counts[1][operator] + 1
    assert sum(counts[1][name] for name in ("Conv", "FusedConv", "Gemm", "FusedGemm")) == 1
    assert applied.facts["kept_float"][part] >= 1


def test_a_part_that_is_not_there_any_more_is_passed_over_and_said(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    options = quantize_ort.Options(keep_float=("layers.7",))
    applied = quantize_ort.apply(exported(case, tmp_path), options, case.tools(tmp_path))
    assert applied.facts["kept_float"] == {"layers.7": 0}
    assert sum(applied.facts["int8"].values()) == 3  # type: ignore[attr-defined]


def test_the_shift_of_a_bias_is_the_mean_error_of_the_rounded_weights(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    tools, source = case.tools(tmp_path, rows=20), onnx.load(exported(case, tmp_path))
    conv = next(node for node in source.graph.node if node.op_type == "Conv")
    constants = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    rounded = (constants[conv.input[1]] / 0.05).round() * np.float32(0.05)
    shifts = _ort_bias.mean_shifts(source, {conv.input[1]: rounded}, tools, 20)
    rows = torch.from_numpy(tools.calibration.inputs["image"])
    exact, coarse = (
        torch.nn.functional.conv2d(rows, torch.from_numpy(w), padding=1) for w in (constants[conv.input[1]], rounded)
    )
    assert np.allclose(shifts[conv.output[0]], (coarse - exact).mean((0, 2, 3)).numpy(), atol=1e-5)


def test_corrected_biases_take_the_mean_error_out_of_a_layer(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    wanted = Static(types=["Gemm"], excluded=[], per_channel=False, reduce_range=True)
    source = exported(case, tmp_path)
    path, changed = _ort_bias.corrected(source, case.tools(tmp_path, rows=64), wanted)
    assert changed == 3
    before, after = (
        {node.name: node.input[2] for node in onnx.load(p).graph.node if node.op_type == "Gemm"} for p in (source, path)
    )
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_biases_of_an_encoder_are_corrected_behind_its_matmuls(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    options = quantize_ort.Options(bias_correction=True)
    applied = quantize_ort.apply(exported(case, tmp_path), options, case.tools(tmp_path))
    assert applied.facts["biases_corrected"] == 9
    follows(case, applied.model)


def test_where_int8_ruins_the_answers_the_culprit_stays_in_float_and_is_named(tmp_path: Path) -> None:
    case = spoiled()
    source = exported(case, tmp_path)
    worse = quantize_ort.apply(source, quantize_ort.Options(islands=0), case.tools(inside(tmp_path, "off")))
    better = quantize_ort.apply(source, quantize_ort.Options(), case.tools(inside(tmp_path, "on")))
    assert worse.facts["sqnr_db"] < 10 <= better.facts["sqnr_db"]  # type: ignore[operator]
    assert better.facts["islands"] == [CULPRIT]
    first, *others = better.facts["culprits"]  # type: ignore[misc]
    assert first["block"] == CULPRIT
    assert all(first["sqnr_db"] < other["sqnr_db"] for other in others)
    assert sum(worse.facts["int8"].values()) == 5  # type: ignore[attr-defined]
    assert sum(better.facts["int8"].values()) == 4  # type: ignore[attr-defined]
    assert _sqnr(case, worse.model) < 10 < _sqnr(case, better.model)


def test_islands_are_not_spoken_of_where_none_are_needed(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    applied = quantize_ort.apply(exported(case, tmp_path), quantize_ort.Options(), case.tools(tmp_path))
    assert not {"islands", "culprits"} & set(applied.facts)
    assert applied.facts["sqnr_db"] > 20  # type: ignore[operator]


def test_int8_weights_without_an_integer_kernel_are_float_again(tmp_path: Path) -> None:
    case = Case("upsampling", torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ConvTranspose2d(4, 2, 3)).eval(),
                {"image": (1, 8, 8)}, {})  # fmt: skip
    applied = quantize_ort.apply(exported(case, tmp_path), quantize_ort.Options(), case.tools(tmp_path))
    found = optimized(applied.model)
    assert settle.unpacked(found) == {}
    assert Counter(node.op_type for node in found.graph.node)["ConvTranspose"] == 1
    assert applied.facts["int8"] == {"Conv": 1}
    follows(case, applied.model)


def _scale_of_input(path: Path) -> float:
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    name = model.graph.input[0].name
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return float(next(constants[pair.input[1]] for pair in pairs if pair.input[0] == name))


def _sqnr(case: Case, path: Path) -> float:
    """By its definition, on rows that the technique did not see."""
    rows = case.samples(64, seed=5).inputs
    with torch.no_grad():
        exact = case.adapter()(*map(torch.from_numpy, rows.values()))[0].numpy()
    ((found,),) = parity.run_file(path, [rows])
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))
