"""Weights in few bits: the rounding and the packing against their definitions, the file against its module."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.artifact import awq, nbits
from petra_deploy.worker.artifact.tidy import strip
from petra_deploy.worker.artifact.tidy.bench import Bench
from petra_deploy.worker.model import parity
from petra_deploy.worker.techniques import quantize_weights
from petra_deploy.worker.techniques.quantize_weights import Options
from tests.models import CASES, Case
from tests.unit.worker.techniques.graphs import exported, follows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 50])
def test_each_weight_is_on_the_nearest_step_of_its_block(bits: int, inputs: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, inputs)).astype(np.float32)
    rounded = nbits.rounded(weight, bits, 32)
    assert rounded.values().shape == weight.shape
    half = np.repeat(rounded.scales, 32, axis=1)[:, :inputs] / 2
    assert (np.abs(rounded.values() - weight) <= 1.01 * half + np.repeat(rounded.scales, 32, 1)[:, :inputs] * 0.5).all()
    spread = weight[:, :32].max(1).clip(min=0) - weight[:, :32].min(1).clip(max=0)
    assert np.allclose(rounded.scales[:, 0], spread / (2**bits - 1), rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_multiplies_by_what_was_rounded(bits: Any, tmp_path: Path) -> None:
    case = CASES["mlp"]()
    source = exported(case, tmp_path)
    applied = quantize_weights.apply(source, Options(bits=bits, compute="float"), case.tools(tmp_path))
    assert applied.facts["layers"] == 2  # the head is too small
    rows = case.samples(5).inputs
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    x = rows["x"]
    for name in ("inner.0", "inner.2", "inner.4"):
        weight = constants[f"{name}.weight"]
        weight = nbits.rounded(weight, bits, 32).values() if name != "inner.4" else weight
        x = x @ weight.T + constants[f"{name}.bias"]
        x = x.clip(min=0) if name != "inner.4" else x
    ((found,),) = parity.run_file(applied.model, [rows])
    assert np.allclose(found, x, atol=1e-3 * np.abs(x).max())


def test_gptq_answers_nearer_than_rounding_to_the_nearest() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((32, 64)).astype(np.float32)
    rows = (generator.standard_normal((256, 8)) @ generator.standard_normal((8, 64))).astype(np.float32)
    error = {
        name: np.square(rows @ (nbits.rounded(weight, 4, 32, given).values() - weight).T).mean()
        for name, given in (("rtn", None), ("gptq", rows))
    }
    assert error["gptq"] < 0.7 * error["rtn"]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_the_file_follows_its_module(method: Any, tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    options = Options(method=method, bits=8)
    applied = quantize_weights.apply(exported(case, tmp_path), options, case.tools(tmp_path))
    counts = Counter(node.op_type for node in onnx.load(applied.model).graph.node)
    assert counts["MatMulNBits"] == 8
    follows(case, applied.model)


def test_rounding_to_the_nearest_is_no_worse_than_onnx_runtimes_own(tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    case = CASES["hand_encoder"]()
    source = exported(case, tmp_path)
    ours = quantize_weights.apply(source, Options(compute="float"), case.tools(tmp_path)).model
    oracle = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=False, accuracy_level=1)
    oracle.process()
    oracle.model.save_model_to_file(str(tmp_path / "oracle.onnx"))
    rows = case.samples(8).inputs
    exact, mine, theirs = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, dict(rows))[0]
        for p in (source, ours, tmp_path / "oracle.onnx")
    )
    assert np.square(mine - exact).mean() < 1.3 * np.square(theirs - exact).mean()


def test_a_graph_without_a_constant_weight_is_refused(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, n] y) '
            "{ t = Transpose <perm = [1, 0]> (x) y = MatMul(x, t) }"
        ),
        tmp_path / "product.onnx",
    )
    with pytest.raises(Problem, match="no linear layer of the graph has a constant weight"):
        quantize_weights.apply(tmp_path / "product.onnx", Options(), CASES["mlp"]().tools(tmp_path))


def test_activation_aware_scales_in_float_change_no_answer(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    before, after, told = _scaled(case, tmp_path)
    assert len(told.scaled) >= 4  # behind the norms before attention and before the hidden layer, in two blocks
    assert all("makes what it reads" in why for why in told.left_out.values())
    rows = case.samples(6).inputs
    ((exact,), (found,)) = (parity.run_file(path, [rows])[0] for path in (before, after))
    assert np.abs(found - exact).max() <= 1e-5
    held = [{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (before, after)]
    assert held[0].keys() != held[1].keys()


def test_scales_go_through_relu_and_biases_into_the_layer_before(tmp_path: Path) -> None:
    case = _loud()
    before, after, told = _scaled(case, tmp_path)
    assert len(told.scaled) == 1
    assert list(told.left_out.values()) == ["it reads an input of the graph"]
    rows = case.samples(6).inputs
    ((exact,), (found,)) = (parity.run_file(path, [rows])[0] for path in (before, after))
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


def test_with_loud_channels_activation_aware_scales_beat_rounding_to_the_nearest(tmp_path: Path) -> None:
    case = _loud()
    source = exported(case, tmp_path)
    rows = case.samples(64).inputs
    ((exact,),) = parity.run_file(source, [rows])
    error = {}
    for method in ("rtn", "awq"):
        options = Options(method=method, compute="float")  # type: ignore[arg-type]
        ((found,),) = parity.run_file(quantize_weights.apply(source, options, case.tools(tmp_path)).model, [rows])
        error[method] = float(np.square(found - exact).mean())
    assert error["awq"] < 0.7 * error["rtn"]


def test_what_more_than_linear_layers_read_keeps_its_scale(tmp_path: Path) -> None:
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = torch.nn.LayerNorm(64), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return x + self.layer(x)

    case = Case("residual", Residual().eval(), {"x": (64,)}, {})
    applied = quantize_weights.apply(exported(case, tmp_path), Options(method="awq"), case.tools(tmp_path))
    assert list(applied.facts["awq_left_out"].values()) == ["Add reads its input too"]  # type: ignore[attr-defined]


def _loud() -> Case:
    """What the second layer reads has four channels thirty times the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
        with torch.no_grad():
            model[0].weight[::16] *= 30.0  # type: ignore[operator]
            model[0].bias[::16] *= 30.0  # type: ignore[operator]
    return Case("loud", model, {"x": (16,)}, {})


def _scaled(case: Case, folder: Path) -> tuple[Path, Path, awq.Told]:
    """The exported graph, the same with scales and nothing rounded, and what was said of it."""
    source = exported(case, folder)
    bench = Bench(ir.load(source))
    layers = [node for node in bench.nodes("MatMul", "Gemm") if awq.weight(bench, node) is not None]
    rows = nbits.inputs_of(bench.model, [layer.inputs[0] for layer in layers], case.tools(folder), 32)
    told = awq.scale(bench, layers, rows, 4, 32)
    strip.rewrite(bench)
    ir.save(bench.model, folder / "scaled.onnx")
    return source, folder / "scaled.onnx", told


def test_a_model_without_a_large_linear_layer_is_an_obstacle_in_words() -> None:
    cpu = Target(name="cpu", runtime="onnxruntime", device="cpu", precisions=("fp32", "int8"))
    (why,) = quantize_weights.obstacles(CASES["inception"]().layout(), cpu)
    assert "1,024" in why
    assert not quantize_weights.obstacles(CASES["mlp"]().layout(), cpu)
