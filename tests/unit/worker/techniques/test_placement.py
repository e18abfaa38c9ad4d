"""Q/DQ pairs where TensorRT fuses: one arm of a residual addition, one scale around a Concat, the same numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.model import parity
from petra_deploy.worker.techniques import half, quantize_ort
from petra_deploy.worker.techniques._placement import place
from tests.models import CASES
from tests.unit.worker.techniques.graphs import exported, follows, inside

SYMMETRIC = quantize_ort.Options(symmetric=True, reduce_range=True)  # this processor may saturate


class Net:
    """A graph to look at: who makes a value, who reads it, and the constants."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.held = {t.name: onnx.numpy_helper.to_array(t) for t in self.graph.initializer}

    def nodes(self, kind: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == kind]

    def makers(self, node: onnx.NodeProto) -> list[str]:
        return [self.made[name].op_type for name in node.input if name in self.made]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def scale(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        return self.held[node.input[1]]


def quantized(name: str, folder: Path) -> Path:
    case = CASES[name]()
    applied = quantize_ort.apply(exported(case, folder), SYMMETRIC, case.tools(inside(folder, "q"), rows=32))
    follows(case, applied.model)
    onnx.checker.check_model(onnx.load(applied.model), full_check=True)
    return Path(applied.model)


@pytest.mark.parametrize(("name", "additions"), [("resnet", 8), ("mobilenet", 4)])
def test_of_a_residual_addition_the_skip_alone_has_a_pair(name: str, additions: int, tmp_path: Path) -> None:
    net = Net(quantized(name, tmp_path))
    assert [sorted(net.makers(node)) for node in net.nodes("Add")] == [["Conv", "DequantizeLinear"]] * additions
    convolutions = net.nodes("Conv")
    assert all(net.makers(node) == ["DequantizeLinear"] * 2 for node in convolutions)


def test_of_two_convolutions_the_one_at_the_end_of_the_longer_way_fuses(tmp_path: Path) -> None:
    net = Net(quantized("resnet", tmp_path))
    shortcuts = [node for node in net.nodes("Conv") if net.held[net.made[node.input[1]].input[0]].shape[2:] == (1, 1)]
    assert len(shortcuts) == 3
    for node in shortcuts:
        assert [reader.op_type for reader in net.readers(node.output[0])] == ["QuantizeLinear"]


def test_inputs_and_output_of_a_concat_share_one_scale_and_relu_stands_before(tmp_path: Path) -> None:
    net = Net(quantized("inception", tmp_path))
    joined = net.nodes("Concat")
    assert len(joined) == 3
    for node in joined:
        assert net.makers(node) == ["DequantizeLinear"] * 4
        (after,) = net.readers(node.output[0])
        assert after.op_type == "QuantizeLinear"
        assert {float(net.scale(net.made[name])) for name in node.input} == {float(net.scale(after))}
        before = [net.made[net.made[net.made[name].input[0]].input[0]].op_type for name in node.input]
        assert before == ["Relu"] * 4


DENSE = """
<ir_version: 10, opset_import: ["": 20]> dense (float[n, 4, 8, 8] x) => (float[n, 12, 8, 8] y) {
  a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w1)
  b = Concat<axis=1>(x, a)
  c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(b, w2)
  d = Concat<axis=1>(b, c)
  y = Conv<kernel_shape=[1, 1]>(d, w3)
}
"""


@pytest.mark.parametrize(("gain", "scales"), [(1.0, 1), (8.0, 3)])
def test_in_a_dense_net_all_that_is_joined_in_a_row_shares_a_scale_unless_far_apart(
    gain: float, scales: int, tmp_path: Path
) -> None:
    case, random = CASES["cnn"](), np.random.default_rng(0)
    model = onnx.parser.parse_model(DENSE)
    for name, shape in {"w1": (4, 4, 3, 3), "w2": (4, 8, 3, 3), "w3": (12, 12, 1, 1)}.items():
        values = random.standard_normal(shape).astype(np.float32) * np.float32(gain / np.sqrt(np.prod(shape[1:])))
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path, rows = tmp_path / "dense.onnx", random.standard_normal((16, 4, 8, 8)).astype(np.float32)
    onnx.save(model, path)
    tools = case.tools(inside(tmp_path, "q"), rows=16)
    door = TensorSpec(name="x", dtype="float32", shape=("batch", *rows.shape[1:]))
    signature = replace(tools.signature, inputs=(door,))
    tools = replace(tools, signature=signature, calibration=Samples({"x": rows}))
    applied = quantize_ort.apply(path, SYMMETRIC, tools)
    assert applied.facts["fused"] == {"residual": 0, "concat": 2}
    net = Net(Path(applied.model))
    pairs = [node for node in net.nodes("QuantizeLinear") if net.scale(node).ndim == 0]
    assert len({float(net.scale(node)) for node in pairs}) == scales
    for node in net.nodes("Concat"):
        after = {float(net.scale(reader)) for reader in net.readers(node.output[0]) if reader.op_type != "Concat"}
        (shared,) = {float(net.scale(net.made[name])) for name in node.input}
        assert shared in after
        assert net.makers(node) == ["DequantizeLinear"] * 2
    (wanted,), (found,) = (parity.run_file(p, [{"x": rows}])[0] for p in (path, applied.model))
    cosine = (wanted * found).sum() / np.sqrt((wanted**2).sum() * (found**2).sum())
    assert cosine > 0.99


def test_what_has_no_pairs_is_left_as_it_is(tmp_path: Path) -> None:
    source = exported(CASES["inception"](), tmp_path)
    model = ir.load(source)
    before = [node.op_type for node in model.graph]
    assert place(model) == {"residual": 0, "concat": 0}
    assert [node.op_type for node in model.graph] == before


@pytest.mark.parametrize("name", ["resnet", "inception"])
def test_fp16_around_it_puts_no_cast_between_pairs(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    applied = half.apply(quantized(name, tmp_path), half.Options(), case.tools(inside(tmp_path, "h")))
    net = Net(Path(applied.model))
    for node in [*net.nodes("Concat"), *net.nodes("Add")]:
        assert "Cast" not in net.makers(node)
    follows(case, Path(applied.model))
