"""Models that come as graphs are shrunk and trained like modules: the real command on each of the three forms."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.end_to_end.conftest import train

RECOVER = {"technique": "recover", "options": {"epochs": 12, "lr": 0.003}}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Convolutional(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(3)))
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))


class Encoder(nn.Module):
    """The rows of the image are its tokens."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(image.squeeze(1)) + self.position).mean(1))


class Recurrent(nn.Module):
    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, hidden, 2, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.rnn(image.squeeze(1))[0][:, -1])


def trained(place, model: nn.Module) -> tuple[nn.Module, tuple[Tensor]]:
    with np.load(place.folder / "data.npz") as data:
        x, y = data["image"][:1000], data["labels"][:1000]
    return train(model, x, y), (torch.from_numpy(x[:3]),)


def as_onnx(place, name):
    model, example = trained(place, Convolutional())
    rows = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, example, str(place.folder / name), dynamo=True, dynamic_shapes=rows, verbose=False,
                      external_data=False, input_names=["image"])  # fmt: skip
    return ()


def as_exported(place, name):
    model, example = trained(place, Encoder())
    rows = ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(model, example, dynamic_shapes=rows), str(place.folder / name))
    return ("--trust",)


def as_torchscript(place, name):
    model, example = trained(place, Recurrent())
    torch.jit.trace(model, example).save(str(place.folder / name))
    return ("--trust",)


FORMS = {
    "run-encoder.pt2": (as_exported, [
        {"technique": "drop_blocks", "options": {"blocks": ["encoder.layers.1"]}},
        {"technique": "prune", "options": {"ratios": {"encoder.layers.0.linear1": 0.5}}}, RECOVER,
    ]),
    "run-lstm.pt": (as_torchscript, [{"technique": "shrink_rnn", "options": {"ratios": {"rnn": 0.5}}}, RECOVER]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_layers_of_a_program_are_removed_and_trained(place, name):
    make, steps = FORMS[name]
    trust = make(place, name)
    recipe = {"steps": steps, "runtime": {}, "seed": 0}
    (place.folder / f"{name}.json").write_text(json.dumps(recipe))
    done = place.petra("apply", f"{name}.json", name, *trust, "--data", "data.npz", "--max-drop", 5, "--batch", 1,
                       "--runtime", "onnxruntime", "--out", f"{name}-out", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["techniques"] == [step["technique"] for step in steps]
    assert done.json["size_ratio"] > 1.3
    assert done.json["metric"]["drop_points"] < 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_search_shrinks_an_onnx_model_whose_baseline_is_its_own_file(place):
    as_onnx(place, "run-cnn.onnx")
    done = place.petra("optimize", "run-cnn.onnx", "--data", "data.npz", "--max-drop", 5, "--batch", 1, "--trials", 2,
                       "--time", "120s", "--runtime", "onnxruntime", "--out", "run-cnn", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert "prune is not available" not in done.err
    assert any(line.startswith("trial") and "prune + recover" in line for line in done.err.splitlines()), done.err
    own, kept = (onnx.load(place.folder / path) for path in ("run-cnn.onnx", "run-cnn/baseline/model.onnx"))
    assert [node.op_type for node in own.graph.node] == [node.op_type for node in kept.graph.node]
    bundle = onnxruntime.InferenceSession(place.folder / "run-cnn/bundle/model.onnx")
    assert bundle.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)
