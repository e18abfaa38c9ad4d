"""Shut this process in before it opens a stranger's file: Landlock, rlimits, no new privileges.

    jailed = jail(read=[*python_paths(), model], write=[store.root])

After it the process can read and write only what was named, start no program (unless asked), open no TCP
connection and signal nobody outside. Needs no root, only Linux 6.7 or later, and takes half a
millisecond. It holds for this thread and those it starts, so call it before any other thread
exists. Source: landlock(7) and the kernel's `include/uapi/linux/landlock.h`.
"""

import ctypes
import os
import site
import stat
import struct
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every architecture
_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL  # rights that a file, not a folder, can have
_READ = _READ_FILE | _READ_DIR
_NEEDED_ABI = 4  # the first that controls TCP
_ABI_FILES = {4: (1 << 15) - 1}  # later ones also control ioctl on devices
_GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dri")  # in /dev


def jail(
    read: Sequence[Path], write: Sequence[Path], memory_bytes: int | None = None, *, programs: bool = False
) -> bool:
    """Confine this process for good; False where the system cannot, and then only the memory limit holds.

    With `programs`, files in `read` may be executed; what is started is confined in the same way.
    Paths that do not exist are left out. `write` includes reading. Raises RuntimeError when other
    threads run already, since they would stay outside.
    """
    devices = [path for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern)]
    if memory_bytes is not None:
        _limit(memory_bytes, addresses=not devices)
    if not available():
        return False
    if sum(1 for _ in Path("/proc/self/task").iterdir()) > 1:
        raise RuntimeError("the jail must be closed before other threads exist")
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_CREATE, None, 0, 1)
    handled = _ABI_FILES.get(abi, (1 << 16) - 1)
    attributes = struct.pack("QQQ", handled, 3, 3)[: 24 if abi >= 6 else 16]  # files; TCP; signals, abstract sockets
    ruleset = _checked(libc.syscall(_CREATE, attributes, len(attributes), 0), "create")
    try:
        for path in {*read}:
            _allow(libc, ruleset, path, (_READ | (_EXECUTE if programs else 0)) & handled)
        own = [Path("/proc/self")] if devices else []  # CUDA names its threads there, or does not start (error 304)
        for path in {*write, *devices, *own, Path("/dev/shm"), Path("/dev/null")}:
            _allow(libc, ruleset, path, handled & ~_EXECUTE)
        _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
        _checked(libc.syscall(_RESTRICT, ruleset, 0), "restrict")
    finally:
        os.close(ruleset)
    return True


def available() -> bool:
    """Whether this system can make a jail."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1)) >= _NEEDED_ABI
    except (OSError, AttributeError):
        return False


def python_paths() -> list[Path]:
    """What Python, torch and the runtimes read: their own files, the system's, no one's home."""
    names: list[str] = [
        *sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(),
        *sysconfig.get_paths().values(), "/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/proc", "/sys",
        "/dev/urandom", "/dev/random", "/dev/zero",
    ]  # fmt: skip
    paths = {Path(name).resolve() for name in names if name}
    paths.add(Path(__file__).resolve().parents[2] / "targets")
    paths.add(Path(__file__).resolve().parents[2] / "profiles")
    return sorted(path for path in paths if path.exists() and path != Path("/"))


def _limit(memory_bytes: int, *, addresses: bool) -> None:
    """Of core files none, of `addresses` as many as given: CUDA reserves far more of them than it ever uses,
    so where there is a GPU the driver's watch over resident memory holds alone.
    """
    import resource

    limits = [(resource.RLIMIT_CORE, 0), *([(resource.RLIMIT_AS, memory_bytes)] if addresses else [])]
    for kind, value in limits:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS knows the first, but does not hold it
            continue


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _ON_FILES
        _checked(libc.syscall(_ADD, ruleset, 1, struct.pack("=Qi", rights, handle), 0), f"allow {path}")
    finally:
        os.close(handle)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock, {what}: {os.strerror(number)}")
    return result
