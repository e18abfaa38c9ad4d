import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import batch_axis, onnx_file

torch.set_num_threads(1)
WEIGHT = np.random.default_rng(0).random((4, 3), dtype=np.float32)


def model(rows: int | str = "n", nodes=None, initializers=None, domains=()) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    initializers = initializers or [numpy_helper.from_array(WEIGHT, "w")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def external(location: str, **entries: object) -> onnx.ModelProto:
    """A model whose weight is kept at `location`."""
    made = model()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return made


def taken(made: onnx.ModelProto, folder, name: str = "m.onnx"):
    (folder / name).write_bytes(made.SerializeToString())
    onnx_file.take(folder / name, folder / "out.onnx")
    return onnx.load_model(folder / "out.onnx", load_external_data=False)


def test_external_data_is_brought_inside(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"pad!" + WEIGHT.tobytes())
    made = taken(external("sub/w.bin", offset=4, length=WEIGHT.nbytes), tmp_path)
    assert np.array_equal(numpy_helper.to_array(made.graph.initializer[0]), WEIGHT)
    assert made.graph.initializer[0].data_location == TensorProto.DEFAULT


@pytest.mark.parametrize("way", ["up", "absolute", "symlink", "hard link", "symlinked folder", "fifo"])
def test_external_data_outside_the_folder_is_never_read(tmp_path, way):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    location = {"up": "../secret.bin", "absolute": str(secret), "symlinked folder": "way/secret.bin"}.get(way, "w.bin")
    if way == "symlink":
        (folder / "w.bin").symlink_to(secret)
    elif way == "hard link":
        os.link(secret, folder / "w.bin")
    elif way == "symlinked folder":
        (folder / "way").symlink_to(tmp_path)
    elif way == "fifo":
        os.mkfifo(folder / "w.bin")
    with pytest.raises(Problem, match=r"outside the model's folder|is a link|hard link|not a regular file") as caught:
        taken(external(location), folder)
    assert caught.value.kind == "input"
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    "entries", [{"offset": 44}, {"offset": -1}, {"length": 1 << 40}, {"length": 4}, {"offset": "a"}]
)
def test_external_data_must_be_exactly_what_the_shape_needs(tmp_path, entries):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(Problem, match=r"external data|offset or length|asks for"):
        taken(external("w.bin", **entries), tmp_path)


def test_a_tensor_too_large_is_refused_before_it_is_read(tmp_path):
    made = external("w.bin")
    made.graph.initializer[0].dims[0] = 1 << 40
    with pytest.raises(Problem, match="over 2 GiB"):
        taken(made, tmp_path)


def test_external_data_hidden_in_an_attribute_is_found(tmp_path):
    hidden = external("../w.bin").graph.initializer[0]
    nodes = [helper.make_node("Constant", [], ["w"], value=hidden), helper.make_node("MatMul", ["x", "w"], ["y"])]
    with pytest.raises(Problem, match="outside the model's folder"):
        taken(model(nodes=nodes, initializers=[numpy_helper.from_array(WEIGHT, "unused")]), tmp_path)


def test_operators_that_need_a_library_are_refused(tmp_path):
    nodes = [helper.make_node("Run", ["x"], ["y"], domain="my.library")]
    with pytest.raises(Problem, match=r"my\.library\.Run, which needs a library"):
        taken(model(nodes=nodes, domains=("my.library",)), tmp_path)


def test_an_invalid_graph_is_said(tmp_path):
    with pytest.raises(Problem, match="not a valid ONNX model"):
        taken(model(nodes=[helper.make_node("Relu", ["nothing"], ["y"])]), tmp_path)


def test_the_first_dimension_is_called_batch(tmp_path):
    taken(model("anything"), tmp_path)
    signature, notes = onnx_file.settle(tmp_path / "out.onnx", None, ())
    assert signature.inputs[0].shape == ("batch", 4)
    assert signature.outputs[0].shape == ("batch", 3)
    assert notes == ()


def test_a_fixed_batch_is_freed_where_rows_stay_themselves(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    values = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array([2, 4]), "shape")]
    taken(model(2, nodes, values), tmp_path)
    assert "changed to take any number" in batch_axis.free(tmp_path / "out.onnx")[0]
    assert onnx_file.settle(tmp_path / "out.onnx", None, ())[0].dynamic_batch


def test_a_fixed_batch_stays_where_rows_depend_on_each_other(tmp_path):
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=1),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    taken(model(2, nodes, [numpy_helper.from_array(np.array([0]), "axes")]), tmp_path)
    assert batch_axis.free(tmp_path / "out.onnx") == ()
    signature, notes = onnx_file.settle(tmp_path / "out.onnx", None, ())
    assert signature.inputs[0].shape == (2, 4)
    assert "exactly 2 rows" in notes[0]


def test_inputs_that_are_no_tensors_of_numbers_are_refused(tmp_path):
    made = model()
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(Problem, match="does not take plain numbers"):
        onnx_file.input_specs(tmp_path / "m.onnx")


def test_a_recurrent_model_with_a_zero_initial_state_is_freed(tmp_path):
    module = torch.nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True).eval()
    program = torch.export.export(module, (torch.randn(1, 5, 4),))
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(tmp_path / "m.onnx"))
    onnx_file.take(tmp_path / "m.onnx", tmp_path / "out.onnx")
    inputs = np.random.default_rng(0).random((3, 5, 4), dtype=np.float32)
    name = onnx_file.input_specs(tmp_path / "out.onnx")[0].name
    batch_axis.free(tmp_path / "out.onnx")
    with torch.no_grad():
        wanted = module(torch.from_numpy(inputs))[0].numpy()
    given = onnx_file.runner(tmp_path / "out.onnx")({name: inputs})[0][1]
    assert np.allclose(wanted, given, atol=1e-5)
