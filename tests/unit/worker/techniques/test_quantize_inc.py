"""Intel Neural Compressor: everything that ONNX Runtime can fuse is fused, and nothing is claimed that is not."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import quantize_inc
from petra_deploy.worker.techniques.quantize_inc import Options
from tests.models import CASES, Case, Inception, ResNet

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
