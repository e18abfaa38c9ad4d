"""What can be held of TensorRT's layer timing without a GPU: that words such as its documentation shows are read, and
that its classes take ours.
"""

import json

import pytest

from petra_deploy.core import machine
from petra_deploy.worker.backends import tensorrt_rtx
from petra_deploy.worker.backends._trt_profile import operators, watching

INPUT = {"Name": "image", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}
INT8 = {
    "Name": "q",
    "Dimensions": [1, 16, 8, 8],
    "Format/Datatype": "Channel major INT8 format",
}
DETAILED = {
    "Layers": [
        {"Name": "conv1/QuantizeLinear_0_clone_0", "LayerType": "Reformat", "Inputs": [INPUT], "Outputs": [INT8],
         "Metadata": "[ONNX Layer: conv1/QuantizeLinear_0]"},
        {"Name": "conv1/Conv_3 + conv1/Relu_4", "LayerType": "CaskConvolution", "Inputs": [INT8], "Outputs": [INT8],
         "Metadata": "[ONNX Layer: conv1/Conv_3]\x1e[ONNX Layer: conv1/Relu_4]"},
    ],
    "Bindings": ["image", "q"],
}  # fmt: skip
TIMES = {"conv1/QuantizeLinear_0_clone_0": [0.002, 0.004, 0.003], "conv1/Conv_3 + conv1/Relu_4": [0.01, 0.02, 0.03]}


def test_layers_have_their_median_in_microseconds_and_the_nodes_that_they_are_of() -> None:
    first, second = operators(TIMES, json.dumps(DETAILED))
    assert (first.us, second.us) == (pytest.approx(3.0), pytest.approx(20.0))
    assert (first.converts, second.converts) == (True, False)
    assert (first.precision, second.precision) == ("fp32", "int8")
    assert second.covers == ("conv1/Conv_3", "conv1/Relu_4", "conv1/Conv_3 + conv1/Relu_4")
    assert (first.writes, second.reads) == (("q",), ("q",))


def test_a_plan_that_tells_names_only_still_has_its_times() -> None:
    found = operators(TIMES, json.dumps({"Layers": list(TIMES), "Bindings": []}))
    assert [(one.name, one.precision) for one in found] == [(name, "") for name in TIMES]
    assert found[1].covers == ("conv1/Conv_3 + conv1/Relu_4",)


@pytest.mark.skipif(not machine.installed("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_the_real_class_takes_what_we_make_of_it() -> None:
    watch = watching(tensorrt_rtx.VENDOR)
    for ms in (0.5, 0.7):
        watch.report_layer_time("conv", ms)
    assert watch.layers == {"conv": [0.5, 0.7]}
    trt, _ = tensorrt_rtx.VENDOR.load()
    assert {"profiler", "report_to_profiler", "enqueue_emits_profile"} <= set(dir(trt.IExecutionContext))
    assert {"DETAILED"} <= set(trt.ProfilingVerbosity.__members__)
    assert "JSON" in trt.LayerInformationFormat.__members__
