"""What `tensorrt` and `tensorrt_rtx` do not share, and how either package is brought in.

    trt, log = vendor.load()            # Problem "extra" where the package is not here
    vendor.devices()                    # Problem "absent" where no driver is: see below
    sentence(log.drain()[0], vendor)    # what went wrong, without NVIDIA's source lines

Without a driver TensorRT's lean runtime hands out an object whose use is a segmentation fault (10.x and
11.x) and RTX's an engine that is None, so `devices()` is asked before a Runtime is made.
"""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petra_deploy.core.errors import Problem
from petra_deploy.core.machine import CudaDevice, cuda_devices, matches
from petra_deploy.core.target import Target

_KEPT = 200  # messages between two drains


@dataclass(frozen=True)
class Contexts:
    """How an engine's execution contexts are made, and what to do when its runner closes."""

    make: Callable[[], Any]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Vendor:
    name: str  # of the backend, and of the Python package
    title: str
    extra: str
    source: str  # where the package is from, for who lacks it
    aim: Callable[[Any, Any, str], None] | None  # how a builder's config is told of a device that is not here
    contexts: Callable[[Any, Any, bool, Path], Contexts]  # of package, engine, CUDA graph wanted, cache file
    graphs: bool  # whether CUDA graphs are left to `contexts`
    times: bool  # whether it times kernels when it builds, and keeps that in a timing cache

    @property
    def ahead(self) -> bool:
        """Whether it compiles for a device that is not here."""
        return self.aim is not None

    def load(self) -> tuple[Any, Any]:
        """The package, and the one logger that it knows in this process. Raises Problem("extra")."""
        return _loaded(self)

    def devices(self) -> tuple[CudaDevice, ...]:
        """The CUDA devices, at least one. Raises Problem("absent") where there is none."""
        if found := cuda_devices():
            return found
        raise Problem(
            "absent",
            f"{self.title} runs on an NVIDIA GPU, and no driver or CUDA device is here",
            "open it on a machine that has one; the model.onnx beside the plan runs anywhere with onnxruntime",
        )

    def index(self, target: Target) -> int | None:
        """The number of the first device that is the target; None where there is none."""
        return next((i for i, device in enumerate(cuda_devices()) if matches(target, device)), None)


def admits(ranges: Sequence[str], version: str) -> bool:
    """Whether one of the ranges (">=10.0,<11") holds the version; no range at all holds every one."""
    return not ranges or any(all(_bounds(part, version) for part in text.split(",")) for text in ranges)


def _bounds(part: str, version: str) -> bool:
    if part.startswith(">="):
        return numbers(version) >= numbers(part)
    return numbers(version) < numbers(part)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


@functools.cache
def _loaded(vendor: Vendor) -> tuple[Any, Any]:
    try:
        trt = importlib.import_module(vendor.name)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == vendor.name
        why = "is not installed" if absent else f"cannot be imported: {error}"
        raise Problem("extra", f"{vendor.title} {why}", f'pip install "petra-deploy[{vendor.extra}]"{vendor.source}') \
            from None  # fmt: skip
    return trt, _logger(trt)


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors. One a process: the package goes on using the first that it is given."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and len(self.errors) < _KEPT:
                self.errors.append(message)

        def drain(self) -> list[str]:
            """The errors since the last time."""
            errors, self.errors = self.errors, []
            return list(dict.fromkeys(errors))

    return Log()


def sentence(message: str, vendor: Vendor) -> str:
    """An error message of the package, as one of our sentences; the node is named where it names one."""
    text = " ".join(message.split())
    if found := re.search(r"Cannot compile operation '(.+?)' for (.+?): (.+?)\.? In \w", text):
        node, device, why = found.groups()
        return f"{vendor.title} cannot compile {_plain(node)} for {device}: {why}"
    text = re.sub(r"^[\w:\[\]. ]*?Error Code:? ?\d+: ", "", text)
    text = re.sub(r"\(?\[[\w./]+:\d+: \w+\] ?|\[?In \S+ at \S+:\d+\]?\)?|\(?\w+\.cpp:\d+\)?", "", text)
    text = " ".join(text.split()).removeprefix("Myelin ").rstrip(" ().") or "it gives no reason"
    return f"{vendor.title} refuses the graph: {text[:300]}"


def refused_node(index: int, name: str, operator: str, description: str, vendor: Vendor) -> str:
    """What the parser says of one node, as one of our sentences."""
    why = " ".join(description.split())
    why = re.sub(r"^.*?(?:Assertion failed|Error code \d+ was returned): ", "", why)
    if told := re.search(r'&& \(?"(.+?)"', why):  # an assertion of C++: its text is what matters
        why = told.group(1)
    if why == "false" or "Plugin not found" in why:
        why = "it has no such operator"
    why = why.rstrip(". ")[:200] or "it gives no reason"
    if not operator:
        return f"{vendor.title} cannot read the graph: {why.rpartition('): ')[2]}"
    return f"{vendor.title} refuses {repr(name) if name else f'node {index}'} ({operator}): {why}"


def _plain(node: str) -> str:
    """`node` as the graph has it: nodes that the compiler made itself have long names with the layer inside."""
    layers = re.findall(r"\(Unnamed Layer\* \d+\) \[(.+?)\]", node)
    return f"a layer ({layers[-1]})" if layers else repr(node)
