"""The targets that are known, what is wrong with a target's file, and which of them this machine is.

problems(Path("my.toml"))     # ("memory_gb has no source", ...); nothing where the file is good
entries()                     # every known target, also one whose file is broken
detect()                      # this machine, and the targets that it satisfies
"""

import difflib
import os
import platform
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from petra_deploy.core import files, machine, registry
from petra_deploy.core.errors import BadInput
from petra_deploy.core.target import Target

# What says which target it is; anything else in a file is a claim, and has a source.
IDENTITY = frozenset({"name", "summary", "runtime", "device", "device_name", "detect", "instructions", "sources"})
RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "openvino")  # a description may be ahead of its backend
_SINCE = {"bf16": (8, 0), "2:4": (8, 0), "fp8": (8, 9), "fp4": (10, 0)}  # CUDA C++ Programming Guide
_RANGE = re.compile(r"(>=|<)\d+(\.\d+)*(,<\d+(\.\d+)*)?")


@dataclass(frozen=True)
class Entry:
    """A known target. `absent` says why this machine is not it; `target` is None where the file is broken."""

    name: str
    path: Path
    target: Target | None
    absent: str | None

    @property
    def here(self) -> bool:
        return self.absent is None


@dataclass(frozen=True)
class Device:
    """A CUDA device of this machine, and the targets that describe it."""

    name: str
    compute_capability: str
    memory_bytes: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Detected:
    cpu: str
    architecture: str
    instructions: tuple[str, ...]
    cores: int
    usable_cores: int
    memory_bytes: int
    devices: tuple[Device, ...]
    here: tuple[str, ...]  # targets that a run may name
    absent: dict[str, str]  # the others, and why


def entries() -> tuple[Entry, ...]:
    """Every known target, ours first by name; a file that cannot be read says so in `absent`."""
    return tuple(_entry(name, path) for name, path in machine.targets().items())


def detect() -> Detected:
    """What this machine is, and which of the known targets."""
    known = entries()
    return Detected(
        cpu=machine.cpu_model(),
        architecture=platform.machine(),
        instructions=machine.instructions(),
        cores=os.cpu_count() or 1,
        usable_cores=machine.usable_cores(),
        memory_bytes=machine.memory_bytes(),
        devices=tuple(
            Device(
                name=device.name,
                compute_capability=device.compute_capability,
                memory_bytes=device.memory_bytes,
                targets=tuple(e.name for e in known if e.target and machine.matches(e.target, device)),
            )
            for device in machine.cuda_devices()
        ),
        here=tuple(entry.name for entry in known if entry.here),
        absent={entry.name: entry.absent for entry in known if entry.absent},
    )


def problems(path: Path) -> tuple[str, ...]:
    """What is wrong with the target in this file, a sentence each; nothing where it is good."""
    try:
        target = files.read_toml(path, Target)
    except BadInput as error:
        return (error.message,)
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    found = [sentence for check in _CHECKS for sentence in check(target)]
    if target.name != path.stem:
        found.append(f"the name is {target.name!r} and the file is {path.name}: they must agree")
    return (*found, *_unsourced(written))


def claims(written: dict[str, object]) -> set[str]:
    """What a target's TOML claims and so must have a source: "memory_gb", "peaks_tflops.int8"."""
    found: set[str] = set()
    for name in written.keys() - IDENTITY:
        value = written[name]
        found |= {f"{name}.{key}" for key in value} if isinstance(value, dict) else {name}
    return found


def _entry(name: str, path: Path) -> Entry:
    try:
        target = machine.resolve(str(path))
    except BadInput as error:
        return Entry(name, path, None, f"cannot be read: {error.message}")
    return Entry(name, path, target, machine.absent(target) or machine.unserved(target))


def _unsourced(written: dict[str, object]) -> Iterator[str]:
    sources = written.get("sources", {})
    given = dict(sources) if isinstance(sources, dict) else {}
    claimed = claims(written)
    for name in sorted(claimed):
        if not given.keys() & {name, name.split(".")[0]}:
            yield f"{name} has no source: add it under [sources]"
    for name, text in given.items():
        if name not in claimed | {claim.split(".")[0] for claim in claimed}:
            yield f"there is a source for {name}, which the file does not give"
        elif not text.strip():
            yield f"the source of {name} is empty"


def _described(target: Target) -> Iterator[str]:
    if not target.summary.strip():
        yield "summary is empty: say in a few words what it is"
    known = {*RUNTIMES, *registry.names("backend")}
    for runtime in (target.runtime, *target.other_runtimes):
        if runtime not in known:
            near = difflib.get_close_matches(runtime, known, n=1)
            yield f"unknown runtime {runtime!r}{f'; did you mean {near[0]!r}?' if near else ''}"
    if target.runtime in target.other_runtimes:
        yield f"other_runtimes repeats {target.runtime}, whose precisions are `precisions`"


def _precise(target: Target) -> Iterator[str]:
    listed = {*target.precisions, *(p for many in target.other_runtimes.values() for p in many)}
    for field, table in (("peaks_tflops", target.peaks_tflops), ("channel_steps", target.channel_steps)):
        for precision in table:
            if precision not in listed:
                yield f"{field} names {precision}, which is not among the precisions"
    for precision, step in target.channel_steps.items():
        if target.channel_step % step:
            yield f"channel_step {target.channel_step} is no multiple of channel_steps.{precision}, {step}"
    for field, many in (("precisions", target.precisions), *target.other_runtimes.items()):
        if not many or len(set(many)) < len(many):
            yield f"{field} must name at least one precision, and each once"


def _capable(target: Target) -> Iterator[str]:
    capability = target.compute_capability
    if target.device == "cpu":
        for field in ("compute_capability", "device_name"):
            if getattr(target, field) is not None:
                yield f"a processor has no {field}"
    elif capability is None:
        yield 'a CUDA target needs a compute_capability, like "8.9"'
    elif not re.fullmatch(r"\d+\.\d", capability):
        yield f'compute_capability {capability!r} is not of the form "8.9"'
    else:
        major, minor = map(int, capability.split("."))
        for feature, since in _SINCE.items():
            if feature in (*target.precisions, *target.sparsity) and (major, minor) < since:
                yield f"{feature} needs compute capability {since[0]}.{since[1]}, and this has {capability}"


def _instructed(target: Target) -> Iterator[str]:
    if target.device == "cuda" and target.detect:
        yield "only a processor can be detected; give a CUDA target its figures"
    if target.device == "cuda" and target.instructions:
        yield "instructions are of a processor; a CUDA target has none"
    for name in target.instructions:
        if name not in machine.INSTRUCTIONS:
            yield f"unknown instruction set {name!r}; known: {', '.join(machine.INSTRUCTIONS)}"


def _complete(target: Target) -> Iterator[str]:
    if missing := target.missing_rates:
        yield (
            f"{', '.join(missing)} missing: attained rates are used together; "
            "`petra-deploy targets detect --save FILE.toml` measures them all"
        )


def _versioned(target: Target) -> Iterator[str]:
    for runtime, ranges in target.runtime_versions.items():
        if runtime != target.runtime and runtime not in target.other_runtimes:
            yield f"runtime_versions names {runtime}, which is not a runtime of this target"
        for text in ranges or ("",):
            if not _RANGE.fullmatch(text):
                yield f'runtime_versions.{runtime}: {text!r} is not a range like ">=10.0,<11"'


_CHECKS: tuple[Callable[[Target], Iterator[str]], ...] = (
    _described, _precise, _capable, _instructed, _complete, _versioned,
)  # fmt: skip
