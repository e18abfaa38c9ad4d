"""conv1d_as_conv2d: the same answers from two-dimensional convolutions, and int8 ones left alone."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from petra_deploy.core import machine
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from petra_deploy.worker.techniques import conv1d_as_conv2d
from tests.models import CASES, Case


class Causal(nn.Module):
    """Dilated convolutions, padded on the left; the last step is read, and a norm of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(3 if i == 0 else 8, 8, 3, dilation=2**i) for i in range(3))
        self.scale = nn.Parameter(torch.rand(8, 1) + 0.5)
        self.slope = nn.PReLU(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = self.slope(conv(functional.pad(x, (2 * 2**i, 0))) * self.scale)
        return self.head(x[:, :, -1])


class Mixed(nn.Module):
    """Strides, groups, poolings, a softmax over steps, two outputs of three dimensions, and a convolution of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 7, 2, 3)
        self.deep = nn.Conv1d(8, 8, 3, 1, 1, groups=8)
        self.up = nn.ConvTranspose1d(8, 8, 2, 2)
        self.flat = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.max_pool1d(torch.relu(self.stem(x)), 3, 2, 1)
        y = torch.cat([self.deep(y), functional.avg_pool1d(y, 3, 1, 1)], -2)
        y = y[:, :8] * torch.softmax(y[:, 8:], -1) + torch.arange(y.shape[-1])
        pictures = self.flat(y.unsqueeze(1)).mean(1)
        return self.last(functional.gelu(self.up(y))), functional.silu(self.last(pictures))


def rewritten(case: Case, folder: Path) -> tuple[Path, Path, dict[str, object]]:
    source = folder / "source.onnx"
    export(case.adapter(), case.signature(), case.tensors(2), source)
    applied = conv1d_as_conv2d.apply(source, conv1d_as_conv2d.Options(), case.tools(folder))
    return source, applied.model, applied.facts


@pytest.mark.parametrize(
    ("case", "convolutions", "doors"),
    [
        (CASES["inception"](), 16, 1),
        (Case("causal", Causal().eval(), {"x": (3, 20)}, {}), 3, 2),
        (Case("mixed", Mixed().eval(), {"x": (2, 40)}, {}), 4, None),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_the_graph_answers_what_it_did_and_its_convolutions_are_of_two_dimensions(
    case: Case, convolutions: int, doors: int | None, tmp_path: Path
) -> None:
    source, result, facts = rewritten(case, tmp_path)
    feeds = [{n: t.numpy() for n, t in zip(case.shapes, case.tensors(rows, seed=3), strict=True)} for rows in (1, 4)]
    for before, after in zip(parity.run_file(source, feeds), parity.run_file(result, feeds), strict=True):
        for wanted, found in zip(before, after, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
    model = onnx.load(result)
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    ranks = Counter(len(weights[node.input[1]]) for node in model.graph.node if node.op_type == "Conv")
    assert ranks == {4: sum(ranks.values())}
    assert facts["convolutions"] == convolutions
    if doors is not None:
        found = [node for node in model.graph.node if node.op_type in ("Squeeze", "Unsqueeze")]
        assert len(found) == doors == facts["doors"]


def test_int8_convolutions_stay_as_they_are(tmp_path: Path) -> None:
    case, store = CASES["inception"](), Store(tmp_path)
    steps = (Step(technique="quantize_ort", options={}), Step(technique="conv1d_as_conv2d", options={}))
    graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy(steps=steps)))
    facts = graph.facts["conv1d_as_conv2d"]
    assert isinstance(facts, dict)
    assert facts["convolutions"] == 0


def test_it_is_for_processors_and_for_models_with_such_layers() -> None:
    cpu, gpu = machine.resolve("cpu"), machine.resolve("l4")
    assert conv1d_as_conv2d.obstacles(CASES["inception"]().layout(), cpu) == ()
    assert "Conv1d" in conv1d_as_conv2d.obstacles(CASES["resnet"]().layout(), cpu)[0]
    assert "processors" in conv1d_as_conv2d.obstacles(CASES["inception"]().layout(), gpu)[0]
