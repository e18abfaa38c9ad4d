"""Where a node stood in the user's module, read from the names that exporters write.

scope("/layer1/layer1.0/conv1/Conv", {})        # "layer1.0.conv1": torch's older exporter
scope("node_conv2d", metadata)                  # the newer one: pkg.torch.onnx.name_scopes
owner("layer1.0.conv1.weight")                  # "layer1.0.conv1": of a parameter's name
"""

import re
from collections.abc import Mapping

from petra_deploy.worker.artifact import scopes

_PART = re.compile(r"\w+(\.\w+)*")
_LAST = re.compile(r"(weight|bias|kernel|gamma|beta)\w*")


def scope(name: str, metadata: Mapping[str, str]) -> str:
    """The path of the module whose forward made the node; empty where its name does not tell."""
    if scopes.SCOPES in metadata:
        return scopes.node(name, metadata)
    parts = [part for part in name.split("/") if part]
    if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts[:-1]):
        return ""
    path: list[str] = []
    for part in parts[:-1]:  # a child of a container is written with the container's own name in front
        given = part.split(".")
        shared = next((n for n in range(min(len(given), len(path)), 0, -1) if path[-n:] == given[:n]), 0)
        path += given[shared:]
    return scopes.module(".".join(path))


def owner(parameter: str) -> str:
    """The path of the layer that has a parameter of this name; empty where the name is no path."""
    path, _, last = parameter.rpartition(".")
    return scopes.module(path) if path and _LAST.fullmatch(last) else ""


class Paths:
    """Gives each layer and parameter a path of its own: none twice, none within another."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._inner: set[str] = set()

    def reserve(self, path: str) -> None:
        """Something will stand below `path`, so nothing may stand at it."""
        parts = path.split(".")
        self._inner.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))

    def take(self, kind: str, *wanted: str) -> str:
        """The first of `wanted` that is free, else a name below or beside it that ends on `kind`."""
        asked = [path for path in wanted if path]
        path = next((path for path in asked if self._free(path)), None)
        if path is None:
            path = self._near(asked[0], kind) if asked else kind
        number, base = 2, path
        while not self._free(path):
            path, number = f"{base}_{number}", number + 1
        self._taken.add(path)
        parts = path.split(".")
        self._inner.update(".".join(parts[:n]) for n in range(1, len(parts)))
        return path

    def _near(self, wanted: str, kind: str) -> str:
        parts = wanted.split(".")
        above = next((n for n in range(1, len(parts)) if ".".join(parts[:n]) in self._taken), None)
        if above is not None:  # something that has no parts stands above: beside it, then
            return ".".join(parts[:above]) + "_" + "_".join(parts[above:])
        return f"{wanted}.{kind}" if wanted in self._inner else f"{wanted}_{kind}"

    def _free(self, path: str) -> bool:
        return path not in self._taken and path not in self._inner and not self._within(path)

    def _within(self, path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:n]) in self._taken for n in range(1, len(parts)))
