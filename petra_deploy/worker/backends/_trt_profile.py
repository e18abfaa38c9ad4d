"""The layers of a plan, timed on the device one by one; and which nodes of the graph each of them is of.

    ran = profile(vendor, folder, settings, feeds, calls=50)

TensorRT tells an IProfiler what each layer took in each call. The engine's inspector says in JSON what a layer is:
"[ONNX Layer: conv1/Conv_3]" in its metadata, and the types of its tensors. Without CUDA graphs, which report nothing
by themselves. Sources: TensorRT's documentation, "Profiling" and "Engine Inspector"; written against the bindings
of 10.16, 11.4 and RTX 1.7, and not yet run on a GPU.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.operators import Ran, RanAll
from petra_deploy.worker.backends import _trt
from petra_deploy.worker.backends._trt_vendor import Vendor

Feeds = Mapping[str, NDArray[Any]]
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_CONVERSION = re.compile(r"reformat|copy|\b(de)?quantize|\bcast\b|shuffle_in|shuffle_out", re.IGNORECASE)
_TYPES = (("INT8", "int8"), ("FP8", "fp8"), ("INT4", "int4"), ("HALF", "fp16"), ("FP16", "fp16"), ("BF16", "bf16"),
          ("FLOAT", "fp32"), ("FP32", "fp32"))  # fmt: skip


def profile(
    vendor: Vendor, folder: Path, settings: Mapping[str, object], feeds: Sequence[Feeds], calls: int, *, seed: int = 0
) -> RanAll:
    """Every call gets the first of `feeds`. Raises Problem "absent" where no device is here."""
    with _trt.open(vendor, folder, {**settings, "cuda_graph": "off"}, seed=seed) as runner:
        watch = watching(vendor)
        times = runner.profile(feeds[0], calls, watch)
        return RanAll(operators=operators(watch.layers, runner.described()), call_us=statistics.median(times) * 1e3)


def watching(vendor: Vendor) -> Any:
    """An IProfiler that keeps, in `layers`, the milliseconds of each layer, call by call."""
    trt, _ = vendor.load()

    class Watch(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.setdefault(layer_name, []).append(ms)

    return Watch()


def operators(layers: Mapping[str, Sequence[float]], described: str) -> tuple[Ran, ...]:
    """`described` is the inspector's JSON. A plan built without details names its layers and says no more."""
    known = {one["Name"]: one for one in json.loads(described).get("Layers", []) if isinstance(one, dict)}
    return tuple(_ran(name, statistics.median(times) * 1e3, known.get(name, {})) for name, times in layers.items())


def _ran(name: str, us: float, facts: Mapping[str, Any]) -> Ran:
    inputs, outputs = facts.get("Inputs", []), facts.get("Outputs", [])
    operator = str(facts.get("LayerType", "")) or name.partition(" ")[0]
    return Ran(
        name=name, operator=operator, precision=_precision(inputs), us=us,
        covers=(*_NODE.findall(str(facts.get("Metadata", ""))), name),
        reads=tuple(str(tensor["Name"]) for tensor in inputs), writes=tuple(str(tensor["Name"]) for tensor in outputs),
        converts=_CONVERSION.search(f"{operator} {name}") is not None and "+" not in name,
    )  # fmt: skip


def _precision(inputs: Sequence[Mapping[str, Any]]) -> str:
    """Of the first input: "Row major linear FP16 format" or, from 10.x on, "Half"."""
    said = str(inputs[0].get("Format/Datatype", inputs[0].get("Datatype", ""))).upper() if inputs else ""
    return next((ours for theirs, ours in _TYPES if theirs in said), "")
