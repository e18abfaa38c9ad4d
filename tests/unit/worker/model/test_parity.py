"""Parity: what counts as the same model, what as another one."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.worker.model.parity import CLOSE, EXACT, RELATED, compare, probes, run_file, run_module

TWO = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
    outputs=(
        TensorSpec(name="a", dtype="float32", shape=("batch", 2)),
        TensorSpec(name="b", dtype="float32", shape=("batch", 2)),
    ),
)
GOOD = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)


def test_rounding_passes_and_its_size_is_told() -> None:
    facts = compare([[GOOD, GOOD]], [[GOOD, GOOD + np.float32(1e-5)]], TWO, EXACT)
    assert facts["a"] == {"cosine": 1.0, "error": 0.0}
    assert 0 < facts["b"]["error"] < 1e-5  # type: ignore[index]


@pytest.mark.parametrize("spoiled", [GOOD + 0.1, GOOD.astype(np.float64), GOOD[:, :1], GOOD * np.nan])
def test_any_output_that_is_off_is_a_mismatch_also_the_second(spoiled: np.ndarray) -> None:
    with pytest.raises(Problem, match="output b") as caught:
        compare([[GOOD, GOOD]], [[GOOD, spoiled]], TWO, EXACT)
    assert caught.value.kind == "mismatch"


def test_a_quantized_file_may_be_off_by_rounding_but_not_another_model() -> None:
    noisy, other = GOOD + np.float32(0.1), GOOD[::-1].copy()
    compare([[GOOD, GOOD]], [[noisy, GOOD]], TWO, CLOSE)
    with pytest.raises(Problem, match="does not follow"):
        compare([[GOOD, GOOD]], [[other, GOOD]], TWO, RELATED)


def test_equal_infinities_are_no_difference() -> None:
    masked = np.array([[1.0, -np.inf]], np.float32)
    assert compare([[masked, masked]], [[masked, masked]], TWO, EXACT)["a"] == {"cosine": 1.0, "error": 0.0}


def test_a_module_that_answers_nan_has_diverged() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x / 0 * 0

    with pytest.raises(Problem) as caught:
        run_module(Broken(), TWO, [{"x": GOOD}])
    assert caught.value.kind == "diverged"


def test_probes_are_of_two_sizes_or_of_the_one_that_a_static_batch_takes() -> None:
    samples = Samples({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    assert [len(feeds["x"]) for feeds in probes(samples, TWO)] == [1, 5]
    static = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(4, 2)),), outputs=TWO.outputs)
    assert [len(feeds["x"]) for feeds in probes(samples, static)] == [4]


def test_a_file_in_bf16_is_compared_in_fp32(tmp_path: Path) -> None:
    weight = np.array([[1.0, 1 / 3], [-2.0, 0.1]], ml_dtypes.bfloat16)
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["b"], to=onnx.TensorProto.BFLOAT16),
        onnx.helper.make_node("MatMul", ["b", "w"], ["p"]),
        onnx.helper.make_node("Cast", ["p"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["rows", 2]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    x = np.eye(2, dtype=np.float32)
    ((y,),) = run_file(path, [{"x": x}])
    np.testing.assert_allclose(y, weight.astype(np.float32))
