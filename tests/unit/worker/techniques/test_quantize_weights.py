"""Weights in few bits: the rounding and the packing against their definitions, the file against its module."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.model import nbits, parity
from petra_deploy.worker.techniques import quantize_weights
from petra_deploy.worker.techniques.quantize_weights import Options
from tests.models import CASES
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


@pytest.mark.parametrize("method", ["rtn", "gptq"])
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


def test_a_graph_of_small_layers_is_refused(tmp_path: Path) -> None:
    case = CASES["dicts"]()
    with pytest.raises(Problem, match="no linear layer of the graph has a constant weight of 1,024"):
        quantize_weights.apply(exported(case, tmp_path), Options(), case.tools(tmp_path))


def test_a_model_without_a_large_linear_layer_is_an_obstacle_in_words() -> None:
    cpu = Target(name="cpu", runtime="onnxruntime", device="cpu", precisions=("fp32", "int8"))
    (why,) = quantize_weights.obstacles(CASES["inception"]().layout(), cpu)
    assert "1,024" in why
    assert not quantize_weights.obstacles(CASES["mlp"]().layout(), cpu)
