"""What this machine says of the energy it uses: RAPL's counters of the processor, NVML's of a GPU.

    meter, why = find("cpu")            # None, and a sentence, where nothing can be read
    before = meter.read()
    ...
    joules = meter.joules(before)

Both count the whole package or card, idle and all else that runs on it included. RAPL's counters lie in
/sys/class/powercap (kernel documentation, power/powercap), are in microjoules, and begin again at
max_energy_range_uj; since CVE-2020-8694 most systems let root alone read them.
NVML: nvmlDeviceGetTotalEnergyConsumption, millijoules since the driver was loaded, from Volta on.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    def read(self) -> tuple[int, ...]: ...
    def joules(self, before: tuple[int, ...]) -> float: ...


def find(device: str, root: Path = POWERCAP) -> tuple[Meter | None, str]:
    """The meter of this device and what it counts, or None and why there is none."""
    return _nvml() if device == "cuda" else _rapl(root)


@dataclass(frozen=True)
class Rapl:
    """The packages of the processor."""

    domains: tuple[tuple[Path, int], ...]  # the counter's file; where it begins again

    def read(self) -> tuple[int, ...]:
        return tuple(int(path.read_text()) for path, _ in self.domains)

    def joules(self, before: tuple[int, ...]) -> float:
        """Since `before`; of a counter that began again once."""
        pairs = zip(self.domains, before, self.read(), strict=True)
        return sum((now - then) if now >= then else (now - then + range_) for (_, range_), then, now in pairs) / 1e6


@dataclass(frozen=True)
class Nvml:
    """One card; `library` stays initialized as long as this process lives."""

    library: ctypes.CDLL
    handle: ctypes.c_void_p

    def read(self) -> tuple[int, ...]:
        millijoules = ctypes.c_ulonglong()
        if self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(millijoules)):
            return ()
        return (millijoules.value,)

    def joules(self, before: tuple[int, ...]) -> float:
        return sum(now - then for then, now in zip(before, self.read(), strict=True)) / 1e3


def _rapl(root: Path) -> tuple[Rapl | None, str]:
    packages: dict[str, Path] = {}
    for folder in sorted(root.glob("intel-rapl*:*"), reverse=True):  # AMD's too; -mmio is the same package again
        name = _text(folder / "name")
        if name.startswith("package-"):
            packages.setdefault(name, folder)
    if not packages:
        return None, f"energy is not known: this machine shows no RAPL counters in {root}"
    domains = []
    for folder in packages.values():
        counter, range_ = folder / "energy_uj", _text(folder / "max_energy_range_uj")
        if not _text(counter).isdigit() or not range_.isdigit():
            return None, f"energy is not known: {counter} cannot be read; as root, chmod a+r it, and measure again"
        domains.append((counter, int(range_)))
    return Rapl(tuple(domains)), f"RAPL, {', '.join(sorted(packages))}"


def _nvml() -> tuple[Nvml | None, str]:
    """Of the first CUDA device of this process, which NVML may count otherwise: found by its PCI address."""
    address = ctypes.create_string_buffer(32)
    try:
        cuda, library = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return None, f"energy is not known: {error}"
    handle = ctypes.c_void_p()
    if cuda.cuInit(0) or cuda.cuDeviceGetPCIBusId(address, len(address), 0) or library.nvmlInit_v2():
        return None, "energy is not known: the driver does not say which card this is"
    if library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle)):
        return None, "energy is not known: NVML does not know this card"
    meter = Nvml(library, handle)
    return (meter, "NVML, the whole card") if meter.read() else (None, "energy is not known: this card counts none")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
