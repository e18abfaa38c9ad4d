import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.operators import Ran
from petra_deploy.worker.artifact import scopes
from petra_deploy.worker.artifact.attribution import Layers


@pytest.mark.parametrize(("name", "module"), [
    ("inner.layer1.0.conv1.weight", "layer1.0.conv1"),
    ("inner.layer1.0.conv1.weight_bias", "layer1.0.conv1"),
    ("inner.layer1.0.conv1.weight_bias_quantized_zero_point", "layer1.0.conv1"),
    ("FusedBack_inner.layers.3.attention.value.bias", "layers.3.attention.value"),
    ("fc.weight_quantized", "fc"),
    ("inner.position", "position"),
    ("val_17_quantized", ""), ("_frozen_param3", ""), ("onnx::Conv_193", ""), ("relu_scale", ""),
])  # fmt: skip
def test_a_parameter_has_its_module_whatever_was_hung_to_its_name(name: str, module: str) -> None:
    assert scopes.parameter(name) == module


def test_a_node_has_its_module_from_its_name_or_from_what_the_exporter_wrote() -> None:
    assert scopes.node("layer1.0.conv1/Conv_12") == "layer1.0.conv1"
    assert scopes.node("Conv_12") == ""
    assert scopes.node("node_conv", {scopes.SCOPES: "['', 'inner', 'inner.head', 'linear']"}) == "head"
    assert scopes.node("node_add", {scopes.SCOPES: "['', 'inner', 'add']"}) == ""
    assert scopes.node("x", {scopes.SCOPES: "['', 'inner', 'inner.norm@1', 'layer_norm']"}) == "norm"


def graph() -> onnx.ModelProto:
    """x -> MatMul(anonymous) + bias of `first` -> Relu -> MatMul(integers, `second`) -> softmax -> @ itself."""
    f = TensorProto.FLOAT
    weights = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "val_9"),
        numpy_helper.from_array(np.ones(4, np.float32), "inner.first.bias"),
        numpy_helper.from_array(np.ones((4, 4), np.int8), "inner.second.weight_quantized"),
        numpy_helper.from_array(np.float32(1), "inner.second.weight_scale"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "val_9"], ["a"], name="MatMul_0"),
        helper.make_node("Add", ["a", "inner.first.bias"], ["b"], name="Add_1"),
        helper.make_node("Relu", ["b"], ["c"], name="Relu_2"),
        helper.make_node("DequantizeLinear", ["inner.second.weight_quantized", "inner.second.weight_scale"], ["w"]),
        helper.make_node("Transpose", ["w"], ["wt"], name="Transpose_4"),
        helper.make_node("MatMul", ["c", "wt"], ["d"], name="MatMul_5"),
        helper.make_node("Softmax", ["d"], ["y"], name="Softmax_6"),
    ]
    io = [helper.make_tensor_value_info(name, f, [2, 4]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:], weights))


def ran(name: str, reads: str = "", writes: str = "", converts: bool = False, covers: tuple[str, ...] = ()) -> Ran:
    return Ran(name=name, operator=name, precision="fp32", us=1.0, covers=(name, *covers), reads=tuple(reads.split()),
               writes=tuple(writes.split()), converts=converts)  # fmt: skip


def test_the_file_has_its_layers_in_order_and_those_whose_weights_are_integers() -> None:
    layers = Layers(graph())
    assert layers.names == ("first", "second")
    assert layers.quantized == ("second",)


def test_weights_own_what_has_none_follows_and_conversions_serve() -> None:
    places = Layers(graph()).attribute([
        ran("MatMul_0/MatMulAddFusion/", "x", "b"),
        ran("Relu_2", "b", "c"),
        ran("Cast_made", "c", "c16", converts=True),
        ran("MatMul_5_token_7", "c16", "d"),
        ran("Transpose_made", "d", "e"),
        ran("Softmax_6", "e", "y"),
        ran("Reorder", "y", "z", converts=True),
    ])  # fmt: skip
    assert places == [
        (("first",), "own"), (("first",), "follows"), (("second",), "converts"), (("second",), "own"),
        (("second",), "follows"), (("second",), "follows"), (("second",), "converts"),
    ]  # fmt: skip


def test_without_tensors_the_order_of_execution_decides() -> None:
    places = Layers(graph()).attribute([
        ran("reformat", converts=True), ran("MatMul_0 + Add_1 + Relu_2"), ran("copy", converts=True), ran("MatMul_5"),
        ran("piece of a softmax"),
    ])  # fmt: skip
    assert [layers for layers, _ in places] == [("first",), ("first",), ("second",), ("second",), ("second",)]


def test_an_operator_that_a_runtime_fused_of_two_layers_is_of_both() -> None:
    (place,) = Layers(graph()).attribute([ran("{ForeignNode[MatMul_0, Add_1, MatMul_5]}")])
    assert place == (("first", "second"), "own")


def test_an_operator_of_a_name_that_the_runtime_made_up_is_found_by_what_comes_after_it() -> None:
    places = Layers(graph()).attribute([ran("Made_1", "x", "m"), ran("Relu_2", "m", "c"), ran("MatMul_5", "c", "d")])
    assert [layers for layers, _ in places] == [("first",), ("first",), ("second",)]
