"""Bring an ONNX model's external data into the model, reading nothing outside its folder.

onnx and ONNX Runtime refuse `../`, but follow hard links. So this opens each file itself: every
step of the path without following links, a regular file with one name, inside the folder, and
exactly as many bytes as the tensor's type and shape ask for.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx

from petra_deploy.core.errors import Problem

_MOST = 2 << 30  # a protobuf cannot be larger
_HINT = "export the model again as one file, or with its data in one file beside it"


def inline(model: onnx.ModelProto, folder: Path) -> int:
    """Replace references by bytes, in place; gives how many bytes were read. Raises Problem("input")."""
    total = 0
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        wanted = _bytes(tensor)
        total += wanted
        if total > _MOST:
            raise Problem(
                "unsupported", "the model's external data is over 2 GiB", "models up to 2 GiB can be optimized"
            )
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = _read(folder, entries, wanted, tensor.name)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    return total


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: in its graphs, their subgraphs, attributes and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, in subgraphs and functions too."""
    yield from _walk(model.graph.node)
    for function in model.functions:
        yield from _walk(function.node)


def _walk(found: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in found:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _walk(graph.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _of_nodes(graph.node)


def _of_nodes(found: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in found:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield sparse.values
                yield sparse.indices
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def _bytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise Problem("input", f"the tensor {tensor.name} has a negative size", _HINT)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise Problem("input", f"the tensor {tensor.name} keeps strings as external data", _HINT)
    count = int(math.prod(tensor.dims))
    packed: int | None = {onnx.TensorProto.INT4: 2, onnx.TensorProto.UINT4: 2, onnx.TensorProto.FLOAT4E2M1: 2}.get(
        tensor.data_type
    )
    if packed:
        return (count + packed - 1) // packed
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        raise Problem("input", f"the tensor {tensor.name} is of an unknown type", _HINT) from None


def _read(folder: Path, entries: dict[str, str], wanted: int, name: str) -> bytes:
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise Problem("input", f"the tensor {name} is kept at {location!r}, outside the model's folder", _HINT)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or wanted)
    except ValueError:
        raise Problem("input", f"the tensor {name} has an offset or length that is no number", _HINT) from None
    if offset < 0 or length != wanted:
        raise Problem(
            "input", f"the tensor {name} asks for {length} bytes at {offset}; its shape needs {wanted}", _HINT
        )
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts[:-1]:
            inner = _open(handle, part, os.O_DIRECTORY, location)
            os.close(handle)
            handle = inner
        file = _open(handle, path.parts[-1], os.O_NONBLOCK, location)
    finally:
        os.close(handle)
    with os.fdopen(file, "rb") as opened:
        info = os.fstat(opened.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise Problem("input", f"the external data {location!r} is not a regular file", _HINT)
        if info.st_nlink != 1:
            raise Problem(
                "input", f"the external data {location!r} is a hard link, so it may belong to other files", _HINT
            )
        if offset + wanted > info.st_size:
            raise Problem("input", f"the external data {location!r} is cut short", "copy or export it again")
        opened.seek(offset)
        data = opened.read(wanted)
    if len(data) != wanted:
        raise Problem("input", f"the external data {location!r} is cut short", "copy or export it again")
    return data


def _open(folder: int, name: str, flags: int, location: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except FileNotFoundError:
        hint = "keep the .onnx file and its data file together"
        raise Problem("input", f"the model's external data {location!r} is missing", hint) from None
    except OSError as error:
        raise Problem(
            "input", f"the external data {location!r} is a link or cannot be read ({error.strerror})", _HINT
        ) from None
