"""What can be known of an ONNX file: its operators and sizes. Its structure is fixed, so it has no groups."""

import math
from collections import Counter
from pathlib import Path

import onnx

from petra_deploy.core.plan import Layout
from petra_deploy.core.workload import Form, Signature

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def graph_layout(path: Path, form: Form, signature: Signature) -> Layout:
    """`path`: the file, with its weights inside. Parameters are the initializers of floating point."""
    model = onnx.load(path)
    weights = [math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in FLOATS]
    return Layout(
        form=form,
        signature=signature,
        parameters=sum(weights),
        bytes=path.stat().st_size,
        operators=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    )
