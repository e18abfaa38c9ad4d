"""An ONNX file with the shapes of its values, behind ONNX Runtime's own integer products too.

model = inferred(path)      # ir.Model; value.shape is known wherever onnx can tell

ONNX's inference stops at operators of other domains. While it runs, the one that we write ourselves
(worker/artifact/tidy/linear.py) is defined as a function of ordinary ones, of which only the shape is asked.
"""

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import helper

from petra_deploy.worker.artifact.tidy.bench import CONTRIB

PRODUCT = "MatMulIntegerToFloat"
_INPUTS = ("a", "b", "a_scale", "b_scale", "a_zero", "b_zero", "bias")


def inferred(path: Path) -> ir.Model:
    model = onnx.load(str(path))
    known = [value for value in model.graph.value_info if value.type.tensor_type.HasField("shape")]
    del model.graph.value_info[:]  # one without a shape would hide what onnx can tell
    model.graph.value_info.extend(known)
    if any(node.op_type == PRODUCT and node.domain == CONTRIB for node in model.graph.node):
        body = [
            helper.make_node("Cast", ["a"], ["wide_a"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Cast", ["b"], ["wide_b"], to=onnx.TensorProto.FLOAT),
            helper.make_node("MatMul", ["wide_a", "wide_b"], ["y"]),
        ]
        ordinary = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
        model.functions.append(helper.make_function(CONTRIB, PRODUCT, _INPUTS, ["y"], body, ordinary))
        found = onnx.shape_inference.infer_shapes(model)
        del found.functions[:]
    else:
        found = onnx.shape_inference.infer_shapes(model)
    return ir.serde.deserialize_model(found)
