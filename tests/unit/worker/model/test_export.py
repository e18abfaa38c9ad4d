"""Export: signature's names and dimensions in the file, no trace of this machine, and the right numbers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.model.export import example_of, export
from tests.models import CASES

FAST = ["cnn", "mlp", "two_inputs", "dicts", "shared", "torch_encoder", "hand_encoder", "events", "gru_mean"]


@pytest.mark.parametrize("name", FAST)
def test_the_file_computes_what_the_module_computes_at_batch_1_and_5(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    signature, path = case.signature(), tmp_path / "model.onnx"
    facts = export(case.adapter(), signature, case.tensors(2), path)
    batches = parity.probes(case.samples(8), signature)
    expected = parity.run_module(case.adapter(), signature, batches)
    assert [len(next(iter(feeds.values()))) for feeds in batches] == [1, 5]
    parity.compare(expected, parity.run_file(path, batches), signature, parity.EXACT)
    assert facts["opset"] == 20


def test_the_files_inputs_outputs_and_dimensions_have_the_signatures_names(tmp_path: Path) -> None:
    case = CASES["two_inputs"]()
    export(case.adapter(), case.signature(), case.tensors(2), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["image", "numbers"]
    assert [_dims(value) for value in graph.input] == [["batch", 1, 8, 8], ["batch", 6]]
    assert _dims(graph.output[0]) == ["batch", 3]


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    case = CASES["cnn"]()
    export(case.adapter(), case.signature(), case.tensors(2), tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[4]).encode() not in data
    assert b"site-packages" not in data
    assert b"forward" not in data


def test_a_second_dimension_may_vary_and_a_second_export_in_one_process_is_as_good_as_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "time", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )
    model = Adapter(_Last(), ("x",)).eval()
    for index in range(2):
        path = tmp_path / f"{index}.onnx"
        export(model, signature, (torch.randn(1, 7, 4),), path)
        for shape in ((1, 7, 4), (5, 3, 4)):
            feeds = [{"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}]
            expected = parity.run_module(model, signature, feeds)
            parity.compare(expected, parity.run_file(path, feeds), signature, parity.EXACT)


def test_what_cannot_be_exported_says_why_in_one_line(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    with pytest.raises(Problem) as caught:
        export(Adapter(_Numpy(), ("x",)).eval(), signature, (torch.randn(2, 4),), tmp_path / "model.onnx")
    assert caught.value.kind == "unsupported"
    assert "\n" not in caught.value.reason
    assert not (tmp_path / "model.onnx").exists()


def test_an_output_of_another_dtype_than_the_signatures_is_a_mismatch(tmp_path: Path) -> None:
    case = CASES["mlp"]()
    outputs = (TensorSpec(name="output", dtype="int64", shape=("batch", 10)),)
    signature = Signature(inputs=case.signature().inputs, outputs=outputs)
    with pytest.raises(Problem, match="int64"):
        export(case.adapter(), signature, case.tensors(2), tmp_path / "model.onnx")


def test_the_example_has_two_rows_where_the_batch_is_dynamic_and_all_that_a_static_one_takes() -> None:
    samples = Samples({"x": np.zeros((7, 4), np.float32)})
    output = (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)
    for batch, rows in (("batch", 2), (3, 3)):
        spec = TensorSpec(name="x", dtype="float32", shape=(batch, 4))
        assert example_of(samples, Signature(inputs=(spec,), outputs=output))[0].shape == (rows, 4)


class _Last(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class _Numpy(torch.nn.Module):
    """Control flow that depends on the data, as no exporter follows it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
