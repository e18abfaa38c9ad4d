"""Intel Neural Compressor: everything that ONNX Runtime can fuse is fused, and nothing is claimed that is not."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.artifact import settle
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import quantize_inc
from petra_deploy.worker.techniques.quantize_inc import Options
from tests.models import CASES, Case, Inception, ResNet
from tests.unit.worker.techniques.outliers import CULPRIT, spoiled

CPU = Target(name="cpu", runtime="onnxruntime", device="cpu", precisions=("fp32", "int8"), instructions=("avx2",))


RESNET = Case("resnet", ResNet(blocks=(1, 2)).eval(), {"image": (3, 12, 12)}, {})


def test_every_convolution_and_addition_of_a_resnet_runs_on_integers_and_weighs_a_quarter(tmp_path: Path) -> None:
    operators, path = _after_fusion(RESNET, tmp_path)
    assert operators["QLinearConv"] == 8
    assert operators["QLinearAdd"] == 3
    assert not {"Conv", "FusedConv", "Add"} & set(operators)
    weights = sum(parameter.numel() for parameter in RESNET.module.parameters())
    assert path.stat().st_size < 0.27 * 4 * weights + 40 * 1024  # the graph itself is 40 kB


def test_norms_behind_concatenations_vanish_and_everything_between_is_int8(tmp_path: Path) -> None:
    model = Inception(depth=1).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):  # not the identity that a fresh one is
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    case = Case("inception", model, {"series": (1, 48)}, {})
    operators, path = _after_fusion(case, tmp_path)
    assert not {"Conv", "FusedConv", "BatchNormalization", "Relu", "Add", "Concat"} & set(operators)
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(case.adapter(), case.signature(), batches)
    parity.compare(expected, parity.run_file(path, batches), case.signature(), parity.CLOSE)


@pytest.mark.parametrize(
    ("name", "operator", "count"), [("lstm", "DynamicQuantizeLSTM", 2), ("events", "DynamicQuantizeLSTM", 1)]
)
def test_lstm_layers_run_on_integers(name: str, operator: str, count: int, tmp_path: Path) -> None:
    operators, _ = _after_fusion(CASES[name](), tmp_path)
    assert operators[operator] == count


def test_outputs_stay_near_the_float_models_at_any_batch_size(tmp_path: Path) -> None:
    case = CASES["two_inputs"]()
    _after_fusion(case, tmp_path)
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(case.adapter(), case.signature(), batches)
    facts = parity.compare(expected, parity.run_file(tmp_path / "model.onnx", batches), case.signature(), parity.CLOSE)
    assert facts["output"]["cosine"] > 0.99  # type: ignore[index]


def test_reduced_range_keeps_weights_within_seven_bits(tmp_path: Path) -> None:
    largest = {}
    for reduce_range in (False, True):
        _after_fusion(CASES["cnn"](), tmp_path, Options(reduce_range=reduce_range))
        weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer]
        largest[reduce_range] = max(
            int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim > 1
        )
    assert largest[False] == 127
    assert 60 < largest[True] <= 64


@pytest.mark.parametrize("name", ["cnn", "torch_encoder", "hand_encoder", "lstm", "events", "two_inputs"])
def test_no_weight_is_unpacked_at_each_call(name: str, tmp_path: Path) -> None:
    _after_fusion(CASES[name](), tmp_path)
    assert settle.unpacked(onnx.load(tmp_path / "optimized.onnx")) == {}


def test_a_table_that_is_read_whole_stays_in_float(tmp_path: Path) -> None:
    """Positions of a fixed length: their rows are constants, and would be unpacked at each call."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(6, 16), torch.nn.Linear(16, 2048)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.table(torch.arange(6)))

    operators, _ = _after_fusion(Case("positions", Positions().eval(), {"x": (6, 16)}, {}), tmp_path)
    assert settle.unpacked(onnx.load(tmp_path / "optimized.onnx")) == {}
    assert operators["MatMulIntegerToFloat"] == 1


def test_a_named_part_stays_in_float_between_integers(tmp_path: Path) -> None:
    operators, _ = _after_fusion(CASES["cnn"](), tmp_path, Options(keep_float=("features.1",)))
    assert operators["QLinearConv"] == 2
    assert operators["Conv"] + operators["FusedConv"] == 1
    kept = CASES["cnn"]().module.get_submodule("features.1.0").weight.shape
    tensors = {t.name: t for t in onnx.load(tmp_path / "optimized.onnx").graph.initializer}
    assert any(t.data_type == onnx.TensorProto.FLOAT and tuple(t.dims) == kept for t in tensors.values())


def test_a_part_that_the_model_never_had_is_refused(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    with pytest.raises(Problem, match=r"has no part 'layers.9'"):
        quantize_inc.apply(case.adapter(), Options(keep_float=("layers.9",)), case.tools(tmp_path))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_weight_has_a_scale_for_each_channel_or_one(granularity: Any, tmp_path: Path) -> None:
    _after_fusion(CASES["cnn"](), tmp_path, Options(granularity=granularity))
    model = onnx.load(tmp_path / "model.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = [
        constants[node.input[1]].size
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.empty(0)).ndim == 4
    ]
    assert scales == ([16, 32, 32] if granularity == "channel" else [1, 1, 1])


def test_corrected_biases_are_those_of_the_definition(tmp_path: Path) -> None:
    """One linear layer: b - E[(w' - w) x], with w' read from the file."""
    layer = torch.nn.Linear(256, 128).eval()
    case = Case("linear", layer, {"x": (256,)}, {})
    tools = case.tools(tmp_path, rows=64)
    applied = quantize_inc.apply(case.adapter(), Options(bias_correction=True, granularity="tensor"), tools)
    assert applied.facts["biases_corrected"] == 1
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    node = next(n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "MatMulIntegerToFloat")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    rounded = constants[node.input[1]] * constants[node.input[3]]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    rows = tools.calibration.inputs["x"]
    expected = bias - (rows @ (rounded - weight.T)).mean(0)
    assert np.allclose(constants[node.input[6]], expected, atol=2e-3 * np.abs(bias).max())
    assert not np.allclose(bias, expected, atol=1e-4)


def test_where_int8_ruins_the_answers_the_culprit_stays_in_float_and_is_named(tmp_path: Path) -> None:
    case = spoiled()
    applied = quantize_inc.apply(case.adapter(), Options(), case.tools(tmp_path, rows=32))
    assert applied.facts["sqnr_db_without_islands"] < 10 <= applied.facts["sqnr_db"]  # type: ignore[operator]
    assert applied.facts["islands"] == [CULPRIT]
    assert applied.facts["culprits"][0]["block"] == CULPRIT  # type: ignore[index]
    assert applied.facts["float"] == {"linear": 1}


def test_a_gru_is_refused_and_not_passed_on_in_float(tmp_path: Path) -> None:
    case = CASES["gru_both_ways"]()
    with pytest.raises(Problem, match="nothing in the model became int8") as caught:
        quantize_inc.apply(case.adapter(), Options(), case.tools(tmp_path))
    assert caught.value.kind == "unsupported"


def test_the_input_module_is_untouched(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    model = case.adapter()
    before = copy.deepcopy(model.state_dict())
    quantize_inc.apply(model, Options(), case.tools(tmp_path))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_does_not_apply_is_said_before() -> None:
    layout = CASES["lstm"]().layout()
    assert quantize_inc.obstacles(layout, CPU) == ()
    no_int8 = Target(name="old", runtime="onnxruntime", device="cpu")
    assert quantize_inc.obstacles(layout, no_int8) == ("old has no int8",)
    assert quantize_inc.fixed(layout, CPU) == {"reduce_range": True, "lower": True}


def _after_fusion(case: Case, folder: Path, options: Options | None = None) -> tuple[Counter[str], Path]:
    """The operators that ONNX Runtime will run, once its optimizer is done."""
    options = options or Options(reduce_range=True)
    applied = quantize_inc.apply(case.adapter(), options, case.tools(folder, rows=32))
    export(applied.model, case.signature(), case.tensors(2), folder / "model.onnx")
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(folder / "optimized.onnx")
    session.log_severity_level = 4
    onnxruntime.InferenceSession(str(folder / "model.onnx"), session, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node), folder / "model.onnx"


def test_a_model_of_which_only_a_small_last_layer_could_be_int8_is_an_obstacle_in_words() -> None:
    (why,) = quantize_inc.obstacles(CASES["gru_mean"]().layout(), CPU)
    assert "16,384 weights" in why
    for name in ("lstm", "events", "mlp"):
        assert not quantize_inc.obstacles(CASES[name]().layout(), CPU)
