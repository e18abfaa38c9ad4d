"""Where the layers and parameters of a lifted graph stand: under the names of the user's own module.

places = Places(tape, graph, names of constants)
path = places.layer(layer, node, ("blocks.0.fc1.weight",))     # "blocks.0.fc1"
path = places.value("position", tensor)                         # "position"
"""

import re
from collections.abc import Iterable

import onnx
import torch
from torch import Tensor, nn

from petra_deploy.worker.artifact.scopes import module as users
from petra_deploy.worker.model.lift.names import Paths, owner, scope
from petra_deploy.worker.model.lift.tape import Scope


class Places:
    def __init__(self, tape: nn.Module, graph: onnx.GraphProto, constants: Iterable[str]) -> None:
        self._tape, self._paths = tape, Paths()
        self._values: dict[str, str] = {}  # name of a constant -> path
        self._parameters: dict[tuple[object, ...], nn.Parameter] = {}
        for path in (*map(where, graph.node), *map(owner, constants)):
            above, _, _ = path.rpartition(".")
            if above:
                self._paths.reserve(above)

    def layer(self, layer: nn.Module, node: onnx.NodeProto, weights: Iterable[str]) -> str:
        """Put it where its node stood, or where the first of its `weights` that has a path says.

        The name of a weight comes first but for linear layers, which may share one: a convolution that a
        norm was folded into stands where the norm stood.
        """
        named = next((path for name in weights if (path := owner(name))), "")
        paths = (where(node), named) if isinstance(layer, nn.Linear) else (named, where(node))
        path = self._paths.take(type(layer).__name__.lower(), *paths)
        holder(self._tape, path).add_module(path.rpartition(".")[2], layer)
        return path

    def value(self, name: str, value: Tensor) -> str:
        """Put it as a parameter, where training it makes sense, else as a buffer; once for each name."""
        if name not in self._values:
            wanted = users(name) if "." in name else ""
            path = self._paths.take("value", wanted, "constant_" + re.sub(r"\W+", "_", name).strip("_"))
            above, last = holder(self._tape, path), path.rpartition(".")[2]
            if value.is_floating_point() and value.numel() > 1 and bool(torch.isfinite(value).all()):
                above.register_parameter(last, self.parameter(value))
            else:
                above.register_buffer(last, value.clone())
            self._values[name] = path
        return self._values[name]

    def parameter(self, value: Tensor) -> nn.Parameter:
        """Matrices of one memory are one parameter; equal vectors are told apart, as exporters merge them."""
        if value.dim() < 2:
            return nn.Parameter(value.clone())
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if key not in self._parameters:
            self._parameters[key] = nn.Parameter(value)
        return self._parameters[key]


def where(node: onnx.NodeProto) -> str:
    """The path of the module whose forward made the node; empty where nothing tells."""
    return scope(node.name, {entry.key: entry.value for entry in node.metadata_props})


def holder(tape: nn.Module, path: str) -> nn.Module:
    """The module above `path`; made of Scopes where it is not there yet."""
    above = tape
    for part in path.split(".")[:-1]:
        child = above._modules.get(part)
        if child is None:
            child = Scope()
            above.add_module(part, child)
        above = child
    return above
