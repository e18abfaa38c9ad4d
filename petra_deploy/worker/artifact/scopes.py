"""Which module of the original model a name in an ONNX graph belongs to.

    parameter("inner.layer1.0.conv1.weight_quantized")      # "layer1.0.conv1"
    parameter("val_17")                                     # "": the exporter's own name
    node("layer1.0.conv1/Conv_12")                          # "layer1.0.conv1", as tidy/strip.py names nodes

Exporters, quantizers and runtimes each hang something of theirs to a parameter's name; it is taken off here.
"""

import ast
import re
from collections.abc import Mapping

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's metadata: "['', 'layer1', 'layer1.0', 'conv2d']"
_ADAPTER = "inner"  # model/adapter.py holds the user's module under this name
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_PARAMETER = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_BEFORE = re.compile(r"^(FusedBack_|InsertedPrecisionFreeCast_)+")
_AFTER = re.compile(
    r"(_quantized|_scale|_zero_point|_DequantizeLinear_Output|_token_\d+|(?<=\.weight)_bias|_fp16|_cast)+$"
)
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def module(path: str) -> str:
    """A module's path in the user's model; empty for the whole model and for what is no path."""
    path = path.partition("@")[0]  # a second call of the same module
    if not _PATH.fullmatch(path) or path in (_ADAPTER, _NO_MODULE):
        return ""
    return path.removeprefix(f"{_ADAPTER}.")


def parameter(name: str) -> str:
    """The module that has this parameter (the parameter itself, where it is the model's own); else empty."""
    name = _AFTER.sub("", _BEFORE.sub("", name))
    if not _PARAMETER.fullmatch(name):
        return ""
    owner, _, own = name.rpartition(".")
    return module(owner) or own


def node(name: str, metadata: Mapping[str, str] | None = None) -> str:
    """The module whose forward made the node; empty where nothing tells."""
    if metadata and SCOPES in metadata:
        scopes = ast.literal_eval(metadata[SCOPES])
        return module(scopes[-2]) if len(scopes) > 1 else ""
    return module(name.rpartition("/")[0])
