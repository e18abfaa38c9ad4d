"""Before and after a measurement: where it runs, and what else was going on.

with pinned(threads=1) as core:
    before = state(core)
    ...
    notes = warnings(before, state(core))
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from petra_deploy.core import machine

_SAMPLE = 0.1  # seconds over which the idle time of cores is compared
_CPUS = Path("/sys/devices/system/cpu")
_SHARED = 0.05  # of the core that a measurement had to itself, taken by others: worth a word


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[int | None]:
    """Keep this process on the core that is idlest now, where it needs one only; undone after.

    Engines of several threads stay free. Yields the core, or None.
    """
    if threads > 1 or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    cores = os.sched_getaffinity(0)
    core = _idlest(cores)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, cores)


def state(core: int | None = None, cpus: Path = _CPUS) -> dict[str, object]:
    """Load average, governor, throttle counters and the processor times of all cores, now; plain data.

    With `core`, also how long that core has worked in all, and this process and its children of it.
    """
    times = _times()
    total, own = times.get("cpu", []), times.get(f"cpu{core}", [])
    said: dict[str, object] = {
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "governor": machine.governor(),
        "jiffies": sum(total[:8]),
        "steal_jiffies": total[7] if len(total) > 7 else 0,
        "throttles": _throttles(cpus),
    }
    if len(own) > 6:
        used = os.times()
        busy = sum(own[:3]) + own[5] + own[6]  # user, nice, system, irq, softirq
        said |= {
            "clock": time.monotonic(), "busy": busy / os.sysconf("SC_CLK_TCK"),
            "own": used.user + used.system + used.children_user + used.children_system,
        }  # fmt: skip
    return said


def warnings(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What makes a measurement less trustworthy, as sentences that say what to do."""
    found = []
    load, cores = before["load"], machine.usable_cores()
    if isinstance(load, float) and load > 1.5 * cores:
        found.append(
            f"the load average was {load:.1f} on {cores} cores: stop other programs for figures that others can repeat"
        )
    if before["governor"] in ("powersave", "ondemand", "conservative"):
        found.append(
            f"the frequency governor is {before['governor']}: "
            "set it to performance (cpupower frequency-set -g performance)"
        )
    passed = _number(after, "jiffies") - _number(before, "jiffies")
    stolen = _number(after, "steal_jiffies") - _number(before, "steal_jiffies")
    if passed > 0 and stolen / passed > 0.02:
        found.append(
            f"the host took {stolen / passed:.0%} of the processor for other guests: measure on a dedicated machine"
        )
    if throttled := _number(after, "throttles") - _number(before, "throttles"):
        found.append(
            f"the processor throttled itself {throttled:.0f} times, being too hot: let it cool, see to its fans, or "
            "fix its frequency lower"
        )
    span = _number(after, "clock") - _number(before, "clock")
    others = _number(after, "busy") - _number(before, "busy") - (_number(after, "own") - _number(before, "own"))
    if span > 0 and others / span > _SHARED:
        found.append(
            f"other programs took {others / span:.0%} of the time of the core that this ran on: stop them, or keep "
            "them off it (taskset, cgroups)"
        )
    return found


def _number(values: dict[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _throttles(cpus: Path) -> int:
    """How often cores and packages have slowed down for heat, since the machine started; 0 where it does not say."""
    total = 0
    for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            total += int(path.read_text())
    return total


def _idlest(cores: set[int]) -> int:
    before = _times()
    if not before:
        return min(cores)
    time.sleep(_SAMPLE)
    after = _times()

    def idle(core: int) -> int:
        name = f"cpu{core}"
        return after[name][3] - before[name][3] if name in before and name in after else -1

    return max(sorted(cores), key=idle)


def _times() -> dict[str, list[int]]:
    """The lines of /proc/stat: "cpu0" -> user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return {}
    return {line[0]: [int(field) for field in line[1:]] for line in lines}
