"""This machine: what it is, what it can do, and whether it is the target that a run names.

    target = resolve("cpu")             # a TOML of targets/, or "./my.toml"
    if reason := absent(target): ...   # "needs a CUDA device, and there is none here"
    fingerprint()                       # what every measurement is filed with

Standard library only, so the driver may ask at once.
"""

import contextlib
import ctypes
import difflib
import fnmatch
import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path

from petra_deploy.core import files, registry
from petra_deploy.core.errors import BadInput, MissingExtra
from petra_deploy.core.target import Target

PACKAGES = (
    "petra-deploy", "onnxruntime", "openvino", "onnx", "torch", "neural-compressor", "torchao", "torch-pruning",
    "numpy",
)  # fmt: skip
RUNTIMES = {  # of a backend of ours -> the packages any one of which brings its runtime, and the extra that does
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), ""),
    "openvino": (("openvino",), "openvino"),
    "tensorrt": (("tensorrt",), "tensorrt"),
    "tensorrt_rtx": (("tensorrt-rtx",), "tensorrt-rtx"),
}
_FLAGS = {  # what a target calls an instruction set -> the kernel's names for it
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_int8", "amx_bf16"),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp",),
}
INSTRUCTIONS = tuple(_FLAGS)
_MAC_FEATURES = {"neon": "hw.optional.neon", "dotprod": "hw.optional.arm.FEAT_DotProd", "avx2": "hw.optional.avx2_0"}


@dataclass(frozen=True)
class CudaDevice:
    name: str  # "NVIDIA H100 80GB HBM3"; on Jetson the board's, since all of its chips are called "Orin"
    compute_capability: str  # "9.0"
    memory_bytes: int


def resolve(name_or_path: str) -> Target:
    """The target of this name, or of this TOML file. `detect = true` is filled in from here.

    Raises BadInput with the nearest names for an unknown one, and for a file that is not valid.
    """
    return detected(described(name_or_path))


def described(name_or_path: str) -> Target:
    """The target of this name, or of this TOML file, as it is written. Raises BadInput, as `resolve` does."""
    return files.read_toml(path_of(name_or_path), Target)


def detected(target: Target) -> Target:
    """`target`, filled in from this machine where it says so."""
    if not target.detect:
        return target
    memory = target.memory_gb or round(memory_bytes() / 2**30, 1) or None
    return replace(target, instructions=instructions(), memory_gb=memory)


def look(target: Target) -> tuple[Target, str | None]:
    """`target` filled in from this machine, and why it is not here, in words that follow its name; None: it is."""
    found = detected(target)
    return found, absent(found) or unserved(found)


def path_of(name_or_path: str) -> Path:
    """The TOML file of the target of this name; a path is itself."""
    if name_or_path.endswith(".toml") or os.sep in name_or_path:
        return Path(name_or_path).expanduser()
    known = targets()
    if name_or_path not in known:
        near = difflib.get_close_matches(name_or_path, known, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(
            f"there is no target called {name_or_path!r}", f"{meant}known: {', '.join(known)}; or ./FILE.toml"
        )
    return known[name_or_path]


def targets() -> dict[str, Path]:
    """name -> TOML file: those shipped, and those of packages (entry points `petra_deploy.target`)."""
    found = {path.stem: path for path in _in(files.shipped("targets"))}
    for point in metadata.entry_points(group="petra_deploy.target"):
        try:
            folder = Path(str(resources.files(point.value)))
        except ImportError as error:
            raise BadInput(
                f"the entry point {point.name!r} names the package {point.value!r}, which cannot be imported: {error}",
                "mend or uninstall the package that registers it",
            ) from None
        for path in _in(folder):
            if path.stem in found and found[path.stem] != path:
                raise BadInput(f"two targets are called {path.stem!r}: {found[path.stem]} and {path}")
            found[path.stem] = path
    return found


def _in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.toml"), key=lambda path: path.stem)


def present(target: Target) -> bool:
    """Whether this machine is the target, as far as can be seen from here."""
    return absent(target) is None


def absent(target: Target) -> str | None:
    """What this machine lacks to be the target, as words that follow its name; None where it is the target."""
    if target.device == "cuda":
        devices = cuda_devices()
        if not devices:
            return "needs a CUDA device, and there is none here"
        if not any(matches(target, device) for device in devices):
            wanted = f"compute capability {target.compute_capability or 'any'}"
            called = f"a device called {target.device_name!r} of " if target.device_name else ""
            here = ", ".join(f"{device.name} ({device.compute_capability})" for device in devices)
            return f"needs {called}{wanted}, and here is {here}"
        return None
    missing = [name for name in target.instructions if name not in instructions()]
    return f"needs {', '.join(missing)}, which this processor lacks" if missing else None


def unserved(target: Target) -> str | None:
    """Why nothing here serves the target, in words that follow its name; None where a backend does."""
    known = registry.names("backend")
    return None if target.runtime in known else f"runs on {target.runtime}, for which there is no backend yet"


def installed(runtime: str) -> bool:
    """Whether a backend's runtime is installed, told without importing it; one of another package brings its own."""
    packages, _ = RUNTIMES.get(runtime, ((), ""))
    return runtime in registry.names("backend") and (not packages or bool(versions(packages)))


def require(runtime: str) -> None:
    """Raises MissingExtra, naming the extra, where the runtime is not installed."""
    if not installed(runtime):
        _, extra = RUNTIMES.get(runtime, ((), ""))
        raise MissingExtra(f"{runtime} is not installed", f'pip install "petra-deploy[{extra}]"' if extra else "")


def matches(target: Target, device: CudaDevice) -> bool:
    """Whether the device is the one that the target describes."""
    capable = target.compute_capability in (None, device.compute_capability)
    named = fnmatch.fnmatchcase(device.name, target.device_name or "*")
    return target.device == "cuda" and capable and named


def fingerprint() -> dict[str, object]:
    """What decides a measurement here: processor, cores, memory, system, versions. Plain data.

    No host name, user, path or environment: it goes into reports and bundles.
    """
    return {
        "cpu": cpu_model(),
        "instructions": list(instructions()),
        "cores": os.cpu_count() or 1,
        "affinity": usable_cores(),
        "memory_bytes": memory_bytes(),
        "governor": governor(),
        "virtual": "hypervisor" in _cpu_flags(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of installed packages, read without importing them; absent ones are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def instructions() -> tuple[str, ...]:
    """The instruction sets of this processor that matter to inference, in the words of Target."""
    if platform.system() == "Darwin":
        return tuple(name for name, feature in _MAC_FEATURES.items() if _sysctl(feature) == "1")
    flags = _cpu_flags()
    return tuple(name for name, names in _FLAGS.items() if any(flag in flags for flag in names))


@functools.cache
def cpu_model() -> str:
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    return _cpuinfo("model name") or _cpuinfo("Hardware") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def governor() -> str:
    """The frequency governor of the first core; "unknown" where the system hides it."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown"


@functools.cache
def cuda_devices() -> tuple[CudaDevice, ...]:
    """The CUDA devices, by the driver alone: no toolkit, no torch."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_cuda_device(driver, device) for device in range(count.value))


def gpus() -> dict[str, object]:
    """The CUDA devices and what the driver supports, for the record of a measurement on one."""
    version = ctypes.c_int()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    names = [f"{device.name} ({device.compute_capability})" for device in cuda_devices()]
    return {"gpus": names, "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}


def _cuda_device(driver: ctypes.CDLL, device: int) -> CudaDevice:
    name, value, size = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_size_t()
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) == 0:
            capability.append(str(value.value))
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    said, board = name.value.decode(errors="replace"), _read("/proc/device-tree/model").strip("\0")
    return CudaDevice(board if said in board else said, ".".join(capability), size.value)


def _cpu_flags() -> frozenset[str]:
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


@functools.cache
def _cpuinfo(field: str) -> str:
    match = re.search(rf"^{field}\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
