"""Static INT8 by onnxruntime.quantization, on the exported graph: any model that has one.

    Step(technique="quantize_ort", options={"method": "percentile", "keep_float": ["layers.0"]})

Q/DQ pairs around every operator ONNX Runtime has an int8 kernel for: activations uint8, weights int8
per channel (or per tensor: faster where channels are few to a group, and coarser), from calibration rows. For models
that come as graphs, and as the other opinion beside Intel Neural Compressor. Readers in float get the tensor
unrounded (_ort_pairs.py). Where int8 ruins the answers, the worst blocks go back to float and the facts name
them (model/islands.py). For GPUs activations are int8 and symmetric, biases stay in float, and pairs
stand where TensorRT fuses them: before layers with weights, at the skip of a residual addition, and at one
scale around a Concat (_placement.py).
Sources: onnxruntime's quantize_static; TensorRT's documentation, "Working with Quantized Types".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import onnx_ir as ir
from annotated_types import Ge, Le

from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import precision
from petra_deploy.worker.model.islands import Attempts, relieve
from petra_deploy.worker.techniques import _ort_bias
from petra_deploy.worker.techniques._ort_graphs import (
    LAYERS,
    WEIGHTED,
    blocks,
    finished,
    has_any,
    judged,
    prepared,
    products,
    within,
)  # fmt: skip
from petra_deploy.worker.techniques._ort_pairs import drop
from petra_deploy.worker.techniques._ort_static import Method, Static, static
from petra_deploy.worker.techniques._placement import place

PHASE = Phase.QUANTIZE
ORDER = 1
ACTS_ON: ActsOn = "graph"
BETWEEN = [  # what stands between convolutions and has an int8 form
    "Add", "Mul", "Relu", "Clip", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Pad",
]  # fmt: skip
FOR_TENSORRT = ["Add", "MaxPool", "AveragePool", "GlobalAveragePool"]  # beside LAYERS, around convolutions


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    method: Method = "minmax"  # how an activation's range is found
    percentile: Annotated[float, Ge(50), Le(100)] = 99.999  # of its values that lie in the range of that method
    granularity: Literal["channel", "tensor"] = "channel"  # what has a scale of its own in a weight
    calibration_rows: Annotated[int, Ge(1)] = 256
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    symmetric: bool = False  # int8 activations around zero, as TensorRT wants them
    lower: bool = True  # to ONNX Runtime's own operators; False, or symmetric: plain Q/DQ for other runtimes
    keep_float: tuple[str, ...] = ()  # modules of the model (or nodes of the graph) that stay in float
    bias_correction: bool = False  # take the mean error of the rounded weights out of the biases
    islands: Annotated[int, Ge(0)] = 4  # most blocks that go back to float where the answers are ruined
    least_db: float = 10.0  # of signal to noise at the outputs, below which they are


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if "int8" not in target.precisions:
        return (f"{target.name} has no int8",)
    if not has_any(layout, WEIGHTED):
        return ("the model has no convolution or linear layer",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    found = {"method": Knob.choice("minmax", "entropy", "percentile")}
    if target.device != "cuda":
        found["granularity"] = Knob.choice("channel", "tensor")
    return {**found, **precision.knob(layout)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    cuda = target.device == "cuda"
    return {
        "reduce_range": target.saturates, "symmetric": cuda, "lower": target.runtime == "onnxruntime" and not cuda,
    }  # fmt: skip


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a quantized graph, how many of its operators are int8, and how far its answers are.

    Raises Problem("unsupported") where the quantizer fails or nothing became int8.
    """
    source = prepared(model, tools)
    graph = ir.load(source).graph
    types, left = _chosen(graph, options.symmetric)
    named = within(graph, options.keep_float)
    left += [node for nodes in named.values() for node in nodes]
    wanted = Static(
        types=types, excluded=left, method=options.method, percentile=options.percentile,
        calibration_rows=options.calibration_rows, per_channel=options.granularity == "channel",
        reduce_range=options.reduce_range, symmetric=options.symmetric,
    )  # fmt: skip
    facts: dict[str, object] = {"calibration_rows": min(options.calibration_rows, len(tools.calibration))}
    if options.bias_correction:
        source, facts["biases_corrected"] = _ort_bias.corrected(source, tools, wanted)
    job = _Job(source, wanted, options, tools, ir.load(source).graph)
    judge = judged(tools)
    attempts = Attempts(job.without, lambda made: judge(model, made.path), lambda name: judge(model, job.alone(name)))
    relieved = relieve(
        attempts, lambda: blocks(graph, [*LAYERS]), most=options.islands, least_db=options.least_db
    )  # fmt: skip
    made = relieved.artifact
    facts = {"int8": made.counts, **facts, **relieved.facts()}
    if made.fused:
        facts["fused"] = made.fused
    if named:
        facts["kept_float"] = {part: len(nodes) for part, nodes in named.items()}
    return Applied(made.path, facts=facts)


@dataclass(frozen=True)
class _Made:
    path: Path
    counts: dict[str, int]
    fused: dict[str, int]


@dataclass(frozen=True)
class _Job:
    """One graph to quantize, several times where islands are needed; calibrated once (_ort_static.py)."""

    source: Path
    wanted: Static
    options: Options
    tools: Tools
    graph: ir.Graph

    def without(self, kept: tuple[str, ...]) -> _Made:
        """The artifact, with these blocks in float."""
        fused: dict[str, int] = {}
        excluded = self.wanted.excluded + [n for nodes in within(self.graph, kept).values() for n in nodes]

        def quantize(path: Path) -> None:
            static(self.source, path, self.tools, replace(self.wanted, excluded=excluded))
            made = ir.load(path)
            if self.options.symmetric:
                fused.update(place(made))
            else:
                drop(made, ir.load(self.source))
            ir.save(made, path)

        lower = self.options.lower and not self.options.symmetric
        hint = "only convolutions and linear layers become int8 here"
        path, counts = finished(quantize, self.tools, hint, lower=lower, name=_name(kept))
        return _Made(path, counts, fused)

    def alone(self, block: str) -> Path:
        """The graph with this block only in int8."""
        path = self.tools.scratch / "alone.onnx"
        inside = set(within(self.graph, [block])[block])
        others = [node.name or "" for node in self.graph if node.name not in inside]
        static(self.source, path, self.tools, replace(self.wanted, excluded=self.wanted.excluded + others))
        return path


def _name(kept: Sequence[str]) -> str:
    return f"model-{len(kept)}" if kept else "model"


def _chosen(graph: ir.Graph, symmetric: bool) -> tuple[list[str], list[str]]:
    """The operator types to quantize, and the nodes among them to leave in float.

    Around convolutions everything must be int8 for the runtime to fuse it. In a transformer residual
    additions and attention scores stay in float: int8 costs them accuracy and saves little time. An addition
    of a constant, a bias that stands alone, is float for TensorRT, and behind a MatMul, whose kernel adds it.
    """
    convolutional = any(node.op_type in ("Conv", "ConvTranspose") for node in graph)
    between = FOR_TENSORRT if symmetric else BETWEEN
    biases = [
        node.name or ""
        for node in graph
        if node.op_type == "Add"
        and any(value and value.const_value for value in node.inputs)
        and (symmetric or any(v and v.producer() and v.producer().op_type == "MatMul" for v in node.inputs))  # type: ignore[union-attr]
    ]
    return LAYERS + (between if convolutional else []), products(graph) + biases
