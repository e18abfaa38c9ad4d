"""Quantization-aware training: only rounding is added, what is trained is what ships, the rule is the paper's."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.target import Target
from petra_deploy.worker.artifact.optimized import optimized
from petra_deploy.worker.model import adapter, masks, parity, precision
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import quantize_inc, quantize_qat
from petra_deploy.worker.techniques._inc_training import Rounded, Rounding, Trainee, factor
from petra_deploy.worker.techniques.quantize_qat import Options
from tests.models import CASES, Case
from tests.unit.worker.techniques.outliers import CULPRIT, spoiled

CPU = Target(name="cpu", runtime="onnxruntime", device="cpu", precisions=("fp32", "int8"), instructions=("avx2",))


class Headed(nn.Module):
    """A convolution that a norm follows, one that none does, dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm, self.bare = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bare(torch.relu(self.norm(self.normed(x)))))
        return self.head(self.drop(x.mean((2, 3))))


def headed() -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Case("headed", Headed().eval(), {"x": (1, 8, 8)}, {})


@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_without_an_epoch_it_is_quantize_inc(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    ours = quantize_qat.apply(case.adapter(), Options(epochs=0), case.tools(tmp_path)).model
    theirs = quantize_inc.apply(case.adapter(), quantize_inc.Options(), case.tools(tmp_path)).model
    for a, b in zip(ours(*case.tensors(5)), theirs(*case.tensors(5)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["cnn", "torch_encoder"])
def test_the_trained_answers_in_int8_are_nearer_to_the_originals(name: str, tmp_path: Path) -> None:
    """Of a model whose weights were shaken."""
    case = CASES[name]()
    shaken = copy.deepcopy(case.adapter())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in shaken.parameters():
            p += 0.3 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0
    tools = case.tools(tmp_path, rows=128, train=case.samples(128, 1, target=False))
    expected = [torch.from_numpy(o).log_softmax(-1) for o in tools.teacher_outputs()]
    assert tools.train is not None
    inputs = [torch.from_numpy(v) for v in tools.train.inputs.values()]
    gap = []
    for epochs in (0, 5):
        options = Options(epochs=epochs, lr=3e-3, granularity="tensor")
        model = quantize_qat.apply(shaken, options, tools).model
        with torch.no_grad():
            found = model(*inputs)
        gap.append(sum(float(((a.log_softmax(-1) - b) ** 2).mean()) for a, b in zip(found, expected, strict=True)))
    assert gap[1] < 0.5 * gap[0]


@pytest.mark.parametrize("name", ["cnn", "inception", "lstm", "hand_encoder", "two_inputs", "events"])
def test_the_file_follows_what_was_trained_and_runs_on_integers(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    applied = quantize_qat.apply(case.adapter(), Options(epochs=1), case.tools(tmp_path, rows=32))
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(applied.model, case.signature(), batches)
    parity.compare(expected, parity.run_file(tmp_path / "model.onnx", batches), case.signature(), parity.CLOSE)
    assert _integer(tmp_path / "model.onnx") == _integer(_inc(case, tmp_path))


def test_the_factor_is_the_papers() -> None:
    """Q / sqrt(n VAR[Q]) has variance 1/n; n counts the outputs, times the places of a kernel."""
    generator = torch.Generator().manual_seed(0)
    for shape, outputs in (((12, 40), 12), ((6, 5, 3, 3), 54)):
        rounded = (7 * torch.randn(shape, generator=generator)).round()
        assert float(factor(rounded)) == pytest.approx(1 / math.sqrt(outputs * float(rounded.var())), rel=1e-5)
        assert float((rounded * factor(rounded)).var()) == pytest.approx(1 / outputs, rel=1e-5)
    assert float(factor(torch.ones(3, 4))) == 1.0


def test_the_rule_holds_for_layers_that_no_norm_follows_and_no_gradient_passes_its_factor(tmp_path: Path) -> None:
    case = headed()
    options = Options(epochs=2, rule="scale_adjusted")
    applied = quantize_qat.apply(case.adapter(), options, case.tools(tmp_path, rows=64))
    assert applied.facts["rescaled"] == ["inner.bare.weight", "inner.head.weight"]
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    variances = sorted(float(w.var(ddof=1)) for w in _weights(tmp_path / "model.onnx"))
    assert variances[0] == pytest.approx(1 / (12 * 9), rel=1e-2)  # bare
    assert any(v == pytest.approx(1 / 5, rel=1e-2) for v in variances)  # head
    weight = torch.randn(4, 6, requires_grad=True, generator=torch.Generator().manual_seed(0))
    found = Rounded(_observer(weight), weight=True, rescaled=True)(weight)
    found.sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, factor(Rounded(_observer(weight), weight=True)(weight)).expand(4, 6))


def test_activations_follow_the_batches_until_they_are_frozen() -> None:
    from torchao.quantization.pt2e import MinMaxObserver

    observer = MinMaxObserver(dtype=torch.uint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255)
    observer(torch.tensor([0.0, 1.0]))
    rounding = Rounded(observer, weight=False).train()
    rounding(torch.tensor([0.0, 2.0]))
    assert float(observer.max_val) == pytest.approx(1.01)  # a hundredth of the way
    rounding.follows = False
    rounding(torch.tensor([0.0, 9.0]))
    assert float(observer.max_val) == pytest.approx(1.01)
    assert float(rounding(torch.tensor([9.0]))) == pytest.approx(1.01, rel=1e-2)  # beyond the range


def test_dropout_is_on_in_training_only_and_keeps_its_share() -> None:
    case = headed()
    graph = torch.export.export(case.adapter(), case.tensors(2), strict=False).module()
    trainee = Trainee(Rounding(graph, {}, {}), 0.0)
    assert [_dropout(graph), _dropout(trainee.train().graph), _dropout(trainee.eval().graph)] == [
        (0.3, False), (0.3, True), (0.3, False),
    ]  # fmt: skip


def test_zeros_outlive_the_training(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    model = case.adapter()
    layer: Any = adapter.submodule(model, "2")
    kept = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masks.put(layer, "weight", kept)
    applied = quantize_qat.apply(model, Options(epochs=2, lr=5e-3), case.tools(tmp_path, rows=64))
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    found = [w for weight in _weights(tmp_path / "model.onnx") for w in (weight, weight.T) if w.shape == kept.shape]
    assert any(not w[~kept.numpy()].any() and w[kept.numpy()].any() for w in found)


def test_where_int8_ruins_the_answers_the_culprit_stays_in_float(tmp_path: Path) -> None:
    case = spoiled()
    applied = quantize_qat.apply(case.adapter(), Options(epochs=1), case.tools(tmp_path, rows=32))
    assert applied.facts["islands"] == [CULPRIT]
    assert applied.facts["float"] == {"linear": 1}


@pytest.mark.parametrize(
    ("technique", "name"),
    [(quantize_inc, "cnn"), *((quantize_qat, name) for name in ("cnn", "lstm", "torch_encoder", "mlp"))],
)
def test_parts_in_float_islands_and_scales_per_tensor_hold_together(technique: Any, name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    parts = precision.parts(case.adapter())
    kept = tuple(parts[:1])
    more: dict[str, Any] = {"bias_correction": True} if technique is quantize_inc else {"epochs": 0.5}
    options = technique.Options(keep_float=kept, islands=1, least_db=100.0, granularity="tensor", **more)
    applied = technique.apply(case.adapter(), options, case.tools(tmp_path, rows=32))
    assert applied.facts["int8"]
    if kept:
        assert applied.facts["kept_float"] == list(kept)
        assert len(applied.facts["islands"]) <= 1
        assert applied.facts["float"]
    export(applied.model, case.signature(), case.tensors(2), tmp_path / "model.onnx")
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(applied.model, case.signature(), batches)
    parity.compare(expected, parity.run_file(tmp_path / "model.onnx", batches), case.signature(), parity.CLOSE)


def test_it_needs_no_labels_and_leaves_its_input_alone(tmp_path: Path) -> None:
    case = CASES["two_inputs"]()
    model = case.adapter()
    before = copy.deepcopy(model.state_dict())
    tools = case.tools(tmp_path, rows=32, train=case.samples(32, 1, target=False))
    applied = quantize_qat.apply(model, Options(epochs=2), tools)
    assert applied.facts["steps"] == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_done_is_said_in_words(tmp_path: Path) -> None:
    case = CASES["gru_both_ways"]()
    with pytest.raises(Problem, match="nothing in the model became int8"):
        quantize_qat.apply(case.adapter(), Options(), case.tools(tmp_path))
    case = CASES["mlp"]()
    with pytest.raises(Problem, match="needs training rows"):
        quantize_qat.apply(case.adapter(), Options(), case.tools(tmp_path, train=None))
    assert quantize_qat.obstacles(case.layout(), Target(name="old", runtime="onnxruntime", device="cpu")) == (
        "old has no int8",
    )
    assert quantize_qat.obstacles(CASES["cnn"]().layout(), CPU) == ()


def _observer(weight: torch.Tensor) -> Any:
    from torchao.quantization.pt2e import MinMaxObserver

    observer = MinMaxObserver(dtype=torch.int8, qscheme=torch.per_tensor_symmetric, quant_min=-127, quant_max=127)
    observer(weight.detach())
    return observer


def _dropout(graph: Any) -> tuple[float, bool]:
    (found,) = [node.args[1:3] for node in graph.graph.nodes if "dropout" in str(node.target)]
    return found


def _inc(case: Case, folder: Path) -> Path:
    model = quantize_inc.apply(case.adapter(), quantize_inc.Options(), case.tools(folder, rows=32)).model
    export(model, case.signature(), case.tensors(2), folder / "inc.onnx")
    return folder / "inc.onnx"


def _integer(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in optimized(path).graph.node)


def _weights(path: Path) -> list[np.ndarray]:
    """The int8 matrices and kernels of a file, as what they stand for."""
    model = onnx.load(path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            values = constants.get(name)
            if values is None or values.dtype != np.int8 or values.ndim < 2:
                continue
            scale = constants[node.input[1 if node.op_type == "DequantizeLinear" else place + 2]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), values.ndim - 1)
            shape = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
            found.append(values.astype(np.float32) * (scale.reshape(shape) if scale.size > 1 else scale))
    return found
