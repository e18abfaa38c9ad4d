"""What TensorRT leaves in the user's own cache: timings, plans built for bundles, and which plans are ours.

    <cache>/tensorrt/timing/<version, device, driver>.timing   timings of kernels, of all builds together
    <cache>/tensorrt/built/<sha256 of a plan>.json             a plan that was built here: its Provenance
    <cache>/tensorrt/plans/<sha256 of model, settings ...>/    plans built when a bundle was opened
    <cache>/tensorrt/jit/<...>.cache                           kernels that TensorRT-RTX compiled

A plan is native code, and what a bundle says of its own plan is the bundle's word. So a plan is opened
only where `built/` vouches for its bytes; that folder is private to its user.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.data import Data
from petra_deploy.core.errors import BadInput
from petra_deploy.core.store import default_root
from petra_deploy.worker.backends._trt_vendor import numbers

PLAN, NOTE, TIMING, MODEL = "model.plan", "plan.json", "timing.cache", "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Provenance(Data):
    """Where a plan was built and for what."""

    schema: str = "petra-deploy/plan/1"
    backend: str
    version: str  # of the package that built it
    device: str  # the driver's name of it; empty: compiled ahead of time for the capability
    compute_capability: str
    driver: str
    model: str  # sha256 of model.onnx
    plan: str  # sha256 of model.plan
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def fits(self, version: str, device: str, capability: str, hardware: str = "this", *, newer: bool = False) -> bool:
        """Whether the plan may serve there, as the settings `hardware` and version_compatible (`newer`) say.

        The driver may change: plans outlive it.
        """
        if hardware == "ampere_plus":
            fitting = min(numbers(capability), numbers(self.compute_capability)) >= (8,)
        else:
            fitting = capability == self.compute_capability and (hardware != "this" or self.device in ("", device))
        ours, theirs = numbers(self.version), numbers(version)
        return fitting and (ours == theirs or (newer and ours[:1] == theirs[:1] and ours < theirs))


@dataclass(frozen=True)
class Plan:
    """The bytes of an engine that was built here, and what is known of it."""

    data: bytes
    provenance: Provenance


def root(part: str) -> Path:
    """A folder of ours in the user's cache. Raises BadInput where it cannot be made."""
    folder = default_root() / "tensorrt" / part
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the cache folder {folder} cannot be written: {error.strerror}",
                       "set PETRA_CACHE_DIR to a writable folder") from None  # fmt: skip
    return folder


def vouch(folder: Path, plan: Plan) -> None:
    """Write a plan that was just built into `folder`, and note in the cache that it was built here."""
    (folder / PLAN).write_bytes(plan.data)
    files.write_json(folder / NOTE, plan.provenance)
    files.write_json(root("built") / f"{plan.provenance.plan}.json", plan.provenance)


def vouched(folder: Path) -> Plan | None:
    """The plan in `folder`, if there is one and its bytes were built here. What `folder` says of it is not asked."""
    if not (folder / PLAN).is_file():
        return None
    data = (folder / PLAN).read_bytes()
    note = root("built") / f"{hashlib.sha256(data).hexdigest()}.json"
    return Plan(data, files.read_json(note, Provenance)) if note.is_file() else None


def plan_folder(*what: object) -> Path:
    """Where the plan of this model, these settings and this device lies, or would lie."""
    return root("plans") / hashlib.sha256(files.canonical(list(what))).hexdigest()


def timing_file(version: str, device: str, driver: str) -> Path:
    return root("timing") / f"{_slug(version, device, driver)}.timing"


def jit_file(version: str, device: str, plan: str) -> Path:
    """Those of plans that were not opened for a month go."""
    folder, old = root("jit"), time.time() - 30 * 86400
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < old:
                path.unlink()
    return folder / f"{_slug(version, device, plan[:16])}.cache"


def read(path: Path) -> bytes:
    """Its bytes; none where there is no such file."""
    return path.read_bytes() if path.is_file() else b""


def update(path: Path, merged: Callable[[bytes], bytes]) -> None:
    """Replace the bytes of `path` by what `merged` makes of them, whole, one process at a time."""
    with locked(path):
        before = read(path)
        after = merged(before)
        if after and after != before:
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(after)
            os.replace(temporary, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other processes; the kernel lets go when the holder dies."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _slug(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(parts)).strip("-")
