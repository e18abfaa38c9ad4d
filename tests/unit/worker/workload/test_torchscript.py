import numpy as np
import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import onnx_file, torchscript
from petra_deploy.worker.workload.table import Table

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
IDS = np.random.default_rng(0).integers(0, 30, (40, 9))


class Encoder(nn.Module):
    """Its attention uses `unflatten`, which the exporter for TorchScript does not know."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 4)

    def forward(self, ids):
        return {"logits": self.head(self.layers(self.embed(ids))[:, 0])}


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 9)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(3):
            x = torch.relu(self.fc(x))
        return x, x.sum(1)


def converted(module, arrays, tmp_path, *specs):
    torch.jit.save(module, str(tmp_path / "m.pt"))
    opened = torchscript.open_trusted(tmp_path / "m.pt")
    torchscript.convert(opened, Table(arrays, None, "data"), specs, tmp_path / "raw.onnx")
    onnx_file.take(tmp_path / "raw.onnx", tmp_path / "m.onnx")
    return onnx_file.settle(tmp_path / "m.onnx", Table(arrays, None, "data"), ())[0]


def test_a_script_with_several_outputs_keeps_them(tmp_path):
    module = torch.jit.script(Loop().eval())
    x = np.random.default_rng(0).random((6, 9), dtype=np.float32)
    signature = converted(module, {"x": x}, tmp_path)
    assert [(o.name, o.shape) for o in signature.outputs] == [("output_0", ("batch", 9)), ("output_1", ("batch",))]
    given = onnx_file.runner(tmp_path / "m.onnx")({"x": x})
    for (_, ours), theirs in zip(given, module(torch.from_numpy(x)), strict=True):
        assert np.allclose(ours, theirs.detach().numpy(), atol=1e-5)


def test_what_the_older_exporter_lacks_goes_by_the_newer(tmp_path):
    model = Encoder().eval()
    traced = torch.jit.trace(model, (torch.from_numpy(IDS[:2]),), strict=False, check_trace=False)
    signature = converted(traced, {"ids": IDS}, tmp_path)
    assert signature.dynamic_batch
    assert signature.outputs[0].name == "logits"
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS[:5]))["logits"].numpy()
    assert np.allclose(wanted, onnx_file.runner(tmp_path / "m.onnx")({"ids": IDS[:5]})[0][1], atol=1e-4)


def test_what_cannot_be_converted_says_why(tmp_path):
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.transpose(1, 2)).real

    x = np.random.default_rng(0).random((6, 3, 3), dtype=np.float32)
    traced = torch.jit.trace(Sorts(), (torch.from_numpy(x[:2]),))
    with pytest.raises(Problem, match="cannot be converted to ONNX") as caught:
        converted(traced, {"x": x}, tmp_path)
    assert caught.value.kind == "unsupported"
