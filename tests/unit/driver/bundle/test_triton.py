from dataclasses import replace

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.driver.bundle.triton import config, model_name, shortfalls

TARGET = Target(name="cpu", runtime="onnxruntime", device="cpu", threads=2)
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", 32))
KIND = TensorSpec(name="kind", dtype="int64", shape=("batch",))
OUTPUT = TensorSpec(name="output", dtype="float32", shape=("batch", 10))


def test_a_dynamic_batch_is_the_servers_to_fill_and_not_in_dims() -> None:
    text = config("net", Signature(inputs=(IMAGE, KIND), outputs=(OUTPUT,)), TARGET, {"threads": 1})
    assert "max_batch_size: 64" in text
    assert "dynamic_batching { }" in text
    assert '{ name: "image" data_type: TYPE_FP32 dims: [ 3, -1, 32 ] }' in text
    assert '{ name: "kind" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } }' in text
    assert 'key: "intra_op_thread_count" value { string_value: "1" }' in text


@pytest.mark.parametrize("output", [replace(OUTPUT, shape=(1, 10)), replace(OUTPUT, shape=())])
def test_a_batch_that_any_tensor_fixes_is_in_dims_everywhere(output: TensorSpec) -> None:
    text = config("net", Signature(inputs=(IMAGE,), outputs=(output,)), TARGET, {})
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    assert "dims: [ -1, 3, -1, 32 ]" in text


def test_the_settings_that_were_measured_are_those_that_serve() -> None:
    signature = Signature(inputs=(IMAGE,), outputs=(OUTPUT,))
    assert "graph { level: 2 }" in config("net", signature, TARGET, {"optimization": "none"})
    assert "level" not in config("net", signature, TARGET, {"optimization": "all"})
    assert '"intra_op_thread_count" value { string_value: "2" }' in config("net", signature, TARGET, {"threads": None})
    assert "SkipLayerNormFusion" in shortfalls("onnxruntime", {"disabled_optimizers": ["SkipLayerNormFusion"]})[0]
    assert shortfalls("onnxruntime", {"disabled_optimizers": []}) == ()


def test_openvino_takes_whole_shapes_and_is_told_the_threads() -> None:
    target = replace(TARGET, runtime="openvino")
    text = config("net", Signature(inputs=(IMAGE, KIND), outputs=(OUTPUT,)), target, {"threads": 3, "precision": "f32"})
    assert 'backend: "openvino"' in text
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    assert '{ name: "kind" data_type: TYPE_INT64 dims: [ -1 ] }' in text
    assert 'key: "INFERENCE_NUM_THREADS" value { string_value: "3" }' in text
    assert "HINT_BF16" not in text
    assert "HINT_BF16" in config("net", Signature(inputs=(IMAGE,), outputs=(OUTPUT,)), target, {"precision": "bf16"})
    assert "has not been tried" in shortfalls("openvino", {})[0]
    with pytest.raises(BadInput, match="scalar"):
        config("net", Signature(inputs=(replace(KIND, shape=()),), outputs=(OUTPUT,)), target, {})


def test_names_are_quoted_and_folder_names_are_plain() -> None:
    odd = replace(IMAGE, name='a"b\\c')
    assert 'name: "a\\"b\\\\c"' in config("net", Signature(inputs=(odd,), outputs=(OUTPUT,)), TARGET, {})
    assert model_name("../my net") == "my_net"
    assert model_name("///") == "model"


def test_a_dtype_without_a_triton_name_is_refused() -> None:
    strings = replace(IMAGE, dtype="complex64")
    with pytest.raises(BadInput, match="complex64"):
        config("net", Signature(inputs=(strings,), outputs=(OUTPUT,)), TARGET, {})
