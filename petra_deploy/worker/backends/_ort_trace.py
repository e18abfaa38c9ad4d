"""ONNX Runtime's profile as operators: the trace tells times, the optimized graph what each node reads and writes.

    ran(Path("trace_2026.json"), Path("optimized.onnx"), times)        # times of the last calls, microseconds

Of each node the kernel's time is taken ("..._kernel_time"), the median of the calls that count; the profiler's own
work lies between kernels. A node inside a Loop or an If is a part of that node's time. Source: ONNX Runtime
documentation, "Profiling Tools".
"""

import collections
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petra_deploy.core.operators import Ran, RanAll

_KERNEL = "_kernel_time"
_PRECISIONS = {
    "float": "fp32", "double": "fp64", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8",
}  # fmt: skip
_INTEGERS = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul",
             "DynamicQuantizeLSTM")  # fmt: skip
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput", "ReorderOutput")
_LAYOUT = re.compile(r"Transpose(_token_\d+)?")  # of ONNX Runtime's own making: into the layout of a kernel
Event = Mapping[str, Any]


def ran(trace: Path, optimized: Path, calls_us: Sequence[float]) -> RanAll:
    """Operators in order of execution. `calls_us` are the times of the last calls, those that count."""
    events = json.loads(trace.read_text(encoding="utf-8"))
    runs = [event for event in events if event.get("name") == "model_run"][-len(calls_us) :]
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
    times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    seen: dict[tuple[str, str], Event] = {}
    for event in _outermost(kernels, runs[0]["ts"]):
        key = (event["name"].removesuffix(_KERNEL), str(event["args"].get("node_index")))
        times[key].append(float(event["dur"]))
        seen.setdefault(key, event)
    nodes, constants = _graph(optimized)
    return RanAll(
        operators=tuple(
            _ran(key[0], seen[key], statistics.median(times[key]), nodes.get(key[0]), constants) for key in seen
        ),
        call_us=statistics.median(calls_us),
    )  # fmt: skip


def _outermost(kernels: Iterable[Event], start: float) -> Iterator[Event]:
    """The kernels from `start` on, in order, those that ran inside another one left out."""
    until: dict[Any, float] = {}
    for event in sorted(kernels, key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] < start:
            continue
        end, thread = event["ts"] + event["dur"], event.get("tid")
        inside = event["ts"] < until.get(thread, 0) and end <= until.get(thread, 0)
        if not inside:
            until[thread] = end
            yield event


def _graph(optimized: Path) -> tuple[dict[str, Any], set[str]]:
    """Nodes of the graph that ran, by name, and its initializers' names. External weights are left alone."""
    import onnx

    graph = onnx.load(str(optimized), load_external_data=False).graph
    return {node.name: node for node in graph.node if node.name}, {one.name for one in graph.initializer}


def _ran(name: str, event: Event, us: float, node: Any, constants: set[str]) -> Ran:
    """`node` is None where ONNX Runtime took a function apart: its pieces have no names."""
    operator = str(event["args"].get("op_name", ""))
    types = [next(iter(one)) for one in event["args"].get("input_type_shape", []) if one]
    reads = () if node is None else tuple(tensor for tensor in node.input if tensor)
    writes = () if node is None else tuple(tensor for tensor in node.output if tensor)
    return Ran(
        name=name, operator=operator, precision=_precision(operator, types), us=us,
        covers=() if node is None else (name, *(tensor for tensor in reads if tensor in constants), *writes),
        reads=reads, writes=writes, converts=operator in _CONVERSIONS or _LAYOUT.fullmatch(name) is not None,
    )  # fmt: skip


def _precision(operator: str, types: list[str]) -> str:
    """Of what an operator computes with: its data, or integers where it is one of those on integers."""
    if operator.startswith(_INTEGERS):
        return "int8"
    if operator == "MatMulNBits":
        return "int4"
    first = next((kind for kind in types if kind in _PRECISIONS), types[0] if types else "")
    return _PRECISIONS.get(first, first)
