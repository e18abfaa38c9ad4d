"""Tell model files apart by what is in them, never by their name, and run none of it.

    sniff(Path("model.pt")).kind        # "torch", "torchscript", "exported", "onnx", ...

A file that carries the marks of two formats, or data before or after its zip archive, is refused:
such files exist to be read differently by different programs. Sizes are bounded here, from the
directory of the archive, before anything is unpacked.
"""

import json
import os
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import pickles, protobuf

Kind = Literal["torch", "legacy", "pickle", "torchscript", "exported", "onnx", "safetensors"]
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: its magic number
_MOST_RATIO = 20  # torch stores without compressing; more than this is a bomb
_SMALL = 64 << 20
_SAVE = "save the model again with torch.save, torch.export.save or torch.onnx.export, or download it again"


@dataclass(frozen=True)
class Sniffed:
    kind: Kind
    scan: pickles.Scan | None = None  # of the pickle, where there is one


def sniff(path: Path) -> Sniffed:
    """The format of a model file. Raises Problem("input") with a hint for whatever is none."""
    size = regular_size(path, "the model file")
    if size == 0:
        raise Problem("input", f"{path.name} is empty", _SAVE)
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path, size)
    if zipfile.is_zipfile(path):
        raise Problem(
            "input", f"{path.name} has other data in front of a zip archive, so it can be read as two formats", _SAVE
        )
    if head.startswith(b"PK"):
        raise Problem("input", f"{path.name} is a damaged or empty zip archive", _SAVE)
    if head.startswith(_LEGACY):
        return Sniffed("legacy", pickles.scan_file(path, which=3))
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return Sniffed("pickle", pickles.scan_file(path, which=0))
    if _is_safetensors(path, head, size):
        return Sniffed("safetensors")
    verdict = protobuf.looks_like_onnx(path, size)
    if verdict == "whole":
        return Sniffed("onnx")
    if verdict == "truncated":
        raise Problem("input", f"{path.name} is an ONNX model cut short", "export or download it again")
    raise _other(path, head)


def regular_size(path: Path, what: str) -> int:
    """Bytes of a regular file. Raises Problem where there is none."""
    try:
        info = path.stat()
    except FileNotFoundError:
        raise Problem("input", f"{what} {path} does not exist", "check the path") from None
    except OSError as error:
        raise Problem("input", f"{what} {path} cannot be read: {error.strerror}", "check its permissions") from None
    if stat.S_ISDIR(info.st_mode):
        raise Problem("input", f"{path} is a folder, not a file", "name the file inside it")
    if not stat.S_ISREG(info.st_mode):
        raise Problem("input", f"{path} is not a regular file", "copy it to a regular file first")
    if not os.access(path, os.R_OK):
        raise Problem("input", f"{path} cannot be read", "check its permissions")
    return info.st_size


def check_archive(path: Path, archive: zipfile.ZipFile, *, ratio: float = _MOST_RATIO) -> None:
    """Refuse archives with entries twice, encrypted, or far larger than the file that holds them."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise Problem("input", f"{path.name} holds two entries of the same name", _SAVE)
    if any(entry.flag_bits & 0x1 for entry in entries):
        raise Problem("input", f"{path.name} is encrypted", "save it without a password")
    total = sum(entry.file_size for entry in entries)
    if total > max(_SMALL, ratio * path.stat().st_size):
        raise Problem(
            "input", f"{path.name} would unpack to {total / 2**30:.1f} GiB, over {ratio:.0f} times its size", _SAVE
        )


def _zip(path: Path, size: int) -> Sniffed:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise Problem("input", f"{path.name} is cut short or damaged: its archive has no directory", _SAVE) from None
    with archive:
        check_archive(path, archive)
        if archive.comment or not _ends_with_directory(path, size):
            raise Problem("input", f"{path.name} has other data behind its archive", _SAVE)
        entries = archive.infolist()
        if not entries or min(entry.header_offset for entry in entries) != 0:
            raise Problem("input", f"{path.name} has other data in front of its archive", _SAVE)
        kind, root = _marks(path, [entry.filename for entry in entries])
        if kind != "torch":
            return Sniffed(kind)
        record = archive.getinfo(f"{root}data.pkl")
        if record.file_size > 256 << 20:
            raise Problem("input", f"{path.name}: its description alone takes {record.file_size >> 20} MiB", _SAVE)
        try:
            data = archive.read(record)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
            raise Problem("input", f"{path.name} is damaged: {error}", _SAVE) from None
    return Sniffed("torch", pickles.scan(data, path.name))


def _marks(path: Path, names: list[str]) -> tuple[Kind, str]:
    """The one format whose marks an archive carries, and its root folder ("" or "name/")."""
    roots = {name.split("/", 1)[0] + "/" if "/" in name else "" for name in names}
    if any(name.endswith(".npy") for name in names):
        raise Problem("input", f"{path.name} is an npz archive: data, not a model", "give it as --data")
    if len(roots) != 1 and "serialized_exported_program.json" not in names:
        raise Problem("input", f"{path.name} is a zip archive, but not one that PyTorch writes", _SAVE)
    root = roots.pop() if len(roots) == 1 else ""
    inside = {name.removeprefix(root) for name in names}
    pickled = "data.pkl" in inside
    script = "constants.pkl" in inside or any(name.startswith("code/") for name in inside)
    exported = bool(inside & {"archive_format", "serialized_exported_program.json"}) or any(
        name.startswith("models/") and name.endswith(".json") for name in inside
    )
    package = bool(inside & {".data/extern_modules", ".data/python_version"})
    if script + exported + package > 1 or (pickled and (exported or package)):
        raise Problem(
            "input", f"{path.name} carries the marks of several formats, so it can be read in two ways", _SAVE
        )
    if package:
        raise Problem(
            "input",
            f"{path.name} is a torch.package archive, which is Python code",
            "save its weights with torch.save(model.state_dict(), ...) and give --model file.py:function",
        )
    if exported:
        return "exported", root
    if script:
        if not (pickled and "constants.pkl" in inside):
            raise Problem("input", f"{path.name} looks like TorchScript, but parts of it are missing", _SAVE)
        return "torchscript", root
    if pickled:
        return "torch", root
    raise Problem("input", f"{path.name} is a zip archive without a model in it", _SAVE)


def _ends_with_directory(path: Path, size: int) -> bool:
    """Whether the end-of-directory record is the last thing in the file."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 22))
        return file.read(4) == b"PK\x05\x06"


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    if len(head) < 10 or head[8:9] != b"{":
        return False
    length = struct.unpack("<Q", head[:8])[0]
    if length > 100 << 20:
        return False
    if length + 8 > size:
        raise Problem("input", f"{path.name} is a safetensors file cut short", "save or download it again")
    with open(path, "rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except (ValueError, RecursionError):
            return False


def _other(path: Path, head: bytes) -> Problem:
    """What a file is that is no model, in one sentence."""
    marks = {
        b"\x93NUMPY": ("a single numpy array", "give data as .npz with --data, and a model as MODEL"),
        b"\x89HDF": ("an HDF5 file (Keras or PyTorch data)", "only PyTorch and ONNX models are read"),
        b"GGUF": ("a GGUF file of language-model weights", "only PyTorch and ONNX models are read"),
        b"\x1f\x8b": ("gzip-compressed", "unpack it first"),
        b"BZh": ("bzip2-compressed", "unpack it first"),
        b"\xfd7zXZ": ("xz-compressed", "unpack it first"),
        b"ptrt": ("a TensorRT engine, which is native code already compiled", "give the model it was built from"),
        b"version https://git-lfs": ("a Git LFS pointer, not the model itself", "run `git lfs pull` and try again"),
    }
    for mark, (what, hint) in marks.items():
        if head.startswith(mark):
            return Problem("input", f"{path.name} is {what}", hint)
    if head[4:8] == b"TFL3":
        return Problem("input", f"{path.name} is a TensorFlow Lite model", "only PyTorch and ONNX models are read")
    if head[257:262] == b"ustar":
        return Problem("input", f"{path.name} is a tar archive", "unpack it and name the model inside")
    try:
        text = head[:-4].decode("utf-8") if len(head) == 4096 else head.decode("utf-8")
    except UnicodeDecodeError:
        return Problem("input", f"{path.name} is in no format that is known here", _SAVE)
    if all(c.isprintable() or c in "\r\n\t\f" for c in text):
        hint = "give Python files as --model file.py:function, and the trained weights as MODEL"
        return Problem("input", f"{path.name} is a text file, not a model", hint)
    return Problem("input", f"{path.name} is in no format that is known here", _SAVE)
