"""NVIDIA ModelOpt's INT8 and FP8, tried for real where its extra is installed; elsewhere it says so."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.machine import resolve
from petra_deploy.worker.techniques import half, quantize_modelopt
from tests.models import CASES
from tests.unit.worker.techniques.graphs import exported, follows, inside

HERE = importlib.util.find_spec("modelopt") is not None
needed = pytest.mark.skipif(not HERE, reason="needs the extra modelopt")


@needed
@pytest.mark.parametrize("method", ["max", "entropy"])
@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["resnet", "hand_encoder", "mobilenet"])
def test_it_quantizes_around_zero_follows_the_float_model_and_casts_to_fp16(
    name: str, mode: str, method: str, tmp_path: Path
) -> None:
    case = CASES[name]()
    options = quantize_modelopt.Options(mode=mode, method=method)  # type: ignore[arg-type]
    source = exported(case, tmp_path)
    before = source.read_bytes()
    applied = quantize_modelopt.apply(source, options, case.tools(inside(tmp_path, "q"), rows=32))
    assert source.read_bytes() == before
    assert applied.facts[mode]
    graph = onnx.load(applied.model).graph
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    zeros = [held[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {str(zero.dtype) for zero in zeros} == {"int8" if mode == "int8" else "float8_e4m3fn"}
    assert not any(zero.astype(np.float32).any() for zero in zeros)
    follows(case, Path(applied.model))
    follows(case, Path(half.apply(applied.model, half.Options(), case.tools(inside(tmp_path, "h"))).model))


@pytest.mark.skipif(HERE, reason="the extra modelopt is installed")
def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    (said,) = quantize_modelopt.obstacles(case.layout(), resolve("l4"))
    assert 'pip install "petra-deploy[modelopt]"' in said
    with pytest.raises(Problem, match="ModelOpt is not installed") as caught:
        quantize_modelopt.apply(tmp_path / "any.onnx", quantize_modelopt.Options(), case.tools(tmp_path))
    assert caught.value.kind == "extra"


def test_it_is_for_tensorrt_and_fp8_for_who_has_it() -> None:
    layout, l4 = CASES["cnn"]().layout(), resolve("l4")
    assert quantize_modelopt.obstacles(layout, resolve("cpu")) == ("it quantizes for TensorRT",)
    assert quantize_modelopt.knobs(layout, l4)["mode"].choices == ("int8", "fp8")
    assert "mode" not in quantize_modelopt.knobs(layout, replace(l4, precisions=("fp16", "int8")))
