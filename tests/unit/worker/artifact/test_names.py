"""Short names change neither what a graph computes nor what tells its layers."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.worker.artifact import names

RNG = np.random.default_rng(0)
IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 4])
FLAG = helper.make_tensor_value_info("t0", TensorProto.BOOL, [])  # a door that is called as a short name would be
SCORES = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 3])


def _branch(name: str, operator: str) -> onnx.GraphProto:
    """A subgraph that reads a tensor of the graph around it and weights of its own."""
    inner = numpy_helper.from_array(RNG.standard_normal(3).astype(np.float32), f"{name}_constant")
    nodes = [helper.make_node(operator, ["product_of_the_layer", inner.name], [f"{name}_result"])]
    out = helper.make_tensor_value_info(f"{name}_result", TensorProto.FLOAT, ["rows", 3])
    return helper.make_graph(nodes, name, [], [out], [inner])


def _model() -> onnx.ModelProto:
    branches = {"then_branch": _branch("then", "Add"), "else_branch": _branch("else", "Mul")}
    nodes = [
        helper.make_node("MatMul", ["image", "head.weight"], ["product_of_the_layer"], name="head/MatMul_0"),
        helper.make_node("If", ["t0"], ["chosen_by_the_flag"], name="a_long_name_of_no_module", **branches),
        helper.make_node("Add", ["chosen_by_the_flag", "_frozen_param17"], ["scores"], name="another_long_name"),
    ]
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("head.weight", (4, 3)), ("_frozen_param17", (3,)))
    ]
    between = [helper.make_tensor_value_info("product_of_the_layer", TensorProto.FLOAT, ["rows", 3])]
    graph = helper.make_graph(nodes, "g", [IMAGE, FLAG], [SCORES], weights, value_info=between)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _answers(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.arange(8, dtype=np.float32).reshape(2, 4)
    return [session.run(None, {"image": image, "t0": np.array(flag)})[0] for flag in (True, False)]


def test_a_graph_computes_the_same_by_short_names_and_is_smaller() -> None:
    model = _model()
    before, size = _answers(model), model.ByteSize()
    names.shorten(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(before, _answers(model))
    assert model.ByteSize() < size
    assert not model.graph.value_info


def test_doors_parameters_and_nodes_of_a_module_keep_their_names() -> None:
    model = _model()
    names.shorten(model)
    assert [door.name for door in (*model.graph.input, *model.graph.output)] == ["image", "t0", "scores"]
    assert model.graph.initializer[0].name == "head.weight"
    assert model.graph.node[0].name == "head/MatMul_0"
    text = model.SerializeToString()
    assert not any(gone in text for gone in (b"product_of", b"frozen", b"long_name", b"chosen_by", b"then_constant"))
    made = [name for node in model.graph.node for name in node.output]
    assert len({*made, "image", "t0"}) == len(made) + 2
