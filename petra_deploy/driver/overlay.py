"""Another version of a runtime, beside the one that is installed: a folder that child processes import from first.

    wanted = parse("onnxruntime==1.27.0")               # BadInput for anything but one version of a runtime
    folder = filled(wanted, store.root, say)            # pip's wheel, unpacked once, kept in the cache
    local.Options(..., overlay=(folder,))               # a child imports it; torch and the rest stay what they are

Only the runtime's own package is fetched, from wherever pip is set up to fetch: what it depends on is already
here, or the import that ends the filling fails and nothing is kept.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from petra_deploy.core import files, machine
from petra_deploy.core.errors import BadInput

OLDEST = {"onnxruntime": "1.27", "openvino": "2026.0"}  # that petra-deploy works with, as its pyproject.toml says;
# of these runtimes one package is the whole, TensorRT's are several, and gigabytes
_PATIENCE = 600.0  # seconds for pip, and for an import
_KEPT_DAYS = 30
_VERSION = r"\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[a-z0-9]+(?:\.[a-z0-9]+)*)?"  # PEP 440
_SHAPE = re.compile(rf"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*==\s*({_VERSION})\s*")
_IMPORTING = (
    "import sys; sys.modules['openvino_telemetry'] = None; import {module}"  # which asks nobody before it sends
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One version of a package that brings a runtime."""

    package: str
    version: str
    runtime: str  # the backend of ours that it serves

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def words(self) -> str:
        return f"{self.package} {self.version}"


def parse(requirement: str) -> Wanted:
    """Raises BadInput for what is not NAME==VERSION, for a package that brings no runtime of ours, for a version older
    than petra-deploy works with, and for the one that is installed.
    """
    packages = {name: runtime for runtime in OLDEST for name in machine.RUNTIMES[runtime][0]}
    example = "give one version of one runtime, like onnxruntime==1.31.0"
    if (match := _SHAPE.fullmatch(requirement)) is None:
        raise BadInput(f"{requirement!r} names no version of a runtime", example)
    package, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
    if package not in packages:
        raise BadInput(f"{package} is no runtime that can be tried beside the installed one",
                       f"these can: {', '.join(packages)}")  # fmt: skip
    wanted = Wanted(package=package, version=version, runtime=packages[package])
    if _same(version, machine.versions((package,)).get(package, "")):
        raise BadInput(f"{wanted.words} is what is installed", "name another version")
    oldest = OLDEST[wanted.runtime]
    if _release(version) < _release(oldest):
        raise BadInput(f"petra-deploy works with {package} {oldest} and later, and {version} is older", example)
    return wanted


def filled(wanted: Wanted, root: Path, say: Callable[[str], None]) -> Path:
    """The overlay's folder below the cache folder `root`, made whole on first use.

    Raises BadInput where pip finds no such version for this Python, cannot reach its index or is not here, and
    where what it brought cannot be imported beside what is installed.
    """
    overlays = root / "overlays"
    overlays.mkdir(mode=0o700, exist_ok=True)
    final = overlays / f"{wanted.package}-{wanted.version}-{_here(wanted)}"
    with _locked(overlays):
        _clean(overlays, final)
        if not final.is_dir():
            say(f"fetching {wanted.words} into the cache")
            with files.new_folder(final) as draft:
                _install(wanted, draft)
                _check(wanted, draft)
        os.utime(final)
    return final


def _install(wanted: Wanted, folder: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import pip"], capture_output=True).returncode:
        raise BadInput("there is no pip in this environment to fetch a runtime with", "python -m ensurepip")
    command = [
        sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-input",
        "--disable-pip-version-check", "--no-warn-conflicts", "--progress-bar", "off", "--target", str(folder),
        wanted.requirement,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise BadInput(f"pip did not bring {wanted.words} within {_PATIENCE:.0f} s") from None
    if done.returncode:
        raise _refused(wanted, done.stdout + done.stderr)


def _refused(wanted: Wanted, said: str) -> BadInput:
    """What pip says, as one sentence; the versions that it knows, newest first."""
    known = re.search(r"\(from versions: ([^)]*)\)", said)
    if known and known[1].strip() not in ("", "none"):
        released = [v for v in known[1].split(", ") if re.fullmatch(r"[\d.]+", v)]
        offered = [v for v in reversed(released) if _release(v) >= _release(OLDEST[wanted.runtime])]
        return BadInput(f"pip finds no {wanted.words} for this Python",
                        f"it offers {', '.join(offered or released[::-1])}")  # fmt: skip
    if known:
        return BadInput(f"pip finds no {wanted.package} at all for this Python",
                        "see that its index is reached: pip download --no-deps " + wanted.requirement)  # fmt: skip
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    return BadInput(f"pip cannot bring {wanted.words}: {(errors or ['it gave no reason'])[0][:300]}")


def _check(wanted: Wanted, folder: Path) -> None:
    """That the folder holds this version, and that it can be imported from there beside what is installed."""
    found = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in metadata.distributions(path=[str(folder)])}
    if not _same(found.get(wanted.package, ""), wanted.version):
        raise BadInput(f"pip brought {found or 'nothing'} where {wanted.requirement} was asked for")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    code = _IMPORTING.format(module=wanted.runtime)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment,
                          timeout=_PATIENCE, stdin=subprocess.DEVNULL)  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BadInput(f"{wanted.words} cannot be imported beside the packages installed here: {last[:300]}",
                       "try it in an environment of its own")  # fmt: skip


def _same(one: str, other: str) -> bool:
    """Whether two versions are one: 2026.0 is 2026.0.0."""
    rest = [re.sub(r"^[\d.]*\d", "", version) for version in (one, other)]
    return rest[0] == rest[1] and _release(one) == _release(other)


def _release(version: str) -> tuple[int, ...]:
    """The numbers by which versions are ordered (PEP 440); zeros at their end say nothing."""
    match = re.match(r"[\d.]*\d", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _here(wanted: Wanted) -> str:
    """What a wheel is for beside its name and version: this Python, this system."""
    parts = [wanted.requirement, sys.implementation.cache_tag, platform.system(), platform.machine()]
    return hashlib.sha256(files.canonical(parts)).hexdigest()[:12]


def _clean(overlays: Path, wanted: Path) -> None:
    """Remove what killed processes left, and overlays that nobody has used for a month."""
    files.remove_stale(overlays)
    for folder in overlays.iterdir():
        if folder.is_dir() and folder != wanted and time.time() - folder.stat().st_mtime > _KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(overlays: Path) -> Iterator[None]:
    """One process fills at a time: another's overlay is never replaced while children import from it."""
    handle = os.open(overlays / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
