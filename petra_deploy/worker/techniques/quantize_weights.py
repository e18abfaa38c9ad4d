"""Weights of linear layers in 4 or 8 bits, activations in float: MatMulNBits of ONNX Runtime.

    Step(technique="quantize_weights", options={"bits": 4, "method": "gptq"})

Each block of `block` weights along a row has a scale and a zero point, Intel Neural Compressor's. "rtn" rounds to the
nearest; "gptq" rounds column after column and lets the columns that follow make up for the error on the
calibration rows; "awq" scales what a layer reads before rounding to the nearest, where what makes it can take the
scale back (worker/artifact/awq.py). Embeddings, convolutions and recurrent layers stay as they are. Made for
token-by-token decoding: what is saved is reading weights, so it pays at a row or a few and costs at many.
Sources: neural-compressor 3.10 (weight_only); Frantar et al., GPTQ (arXiv 2210.17323); Lin et al., AWQ
(arXiv 2306.00978); ONNX Runtime's MatMulNBits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import onnx_ir as ir
from annotated_types import Ge

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.artifact import awq, nbits
from petra_deploy.worker.artifact import graph as graphs
from petra_deploy.worker.artifact.tidy import strip
from petra_deploy.worker.artifact.tidy.bench import CONTRIB, Bench
from petra_deploy.worker.model import precision
from petra_deploy.worker.techniques._ort_graphs import has_any, prepared, within

PHASE = Phase.QUANTIZE
ORDER = 5
ACTS_ON: ActsOn = "graph"
OFF = (
    "weights of 4 or 8 bits are meant for where one token is computed at a time; on batches of whole inputs INT8 was "
    "faster in every family measured (docs/families.md), and what they have is the file: for --objective size"
)
_LINEAR = ("Linear", "MultiheadAttention", "MatMul", "Gemm")
_LEAST = 1024  # weights of a layer, below which the unpacking is all that it costs


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    bits: Literal[4, 8] = 4
    method: Literal["rtn", "gptq", "awq"] = "rtn"
    block: Literal[16, 32, 64, 128] = 32  # weights of a row that share a scale
    compute: Literal["float", "int8"] = "int8"  # in what the kernel multiplies (its accuracy_level 1 or 4)
    calibration_rows: Annotated[int, Ge(1)] = 64  # for gptq and awq
    keep_float: tuple[str, ...] = ()  # modules of the model (or nodes of the graph) that stay in float


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.runtime != "onnxruntime" or target.device != "cpu":
        return ("MatMulNBits exists for ONNX Runtime on a CPU only",)
    if not has_any(layout, _LINEAR):
        return ("the model has no linear layer",)
    known = [layout.largest[name] for name in _LINEAR if name in layout.largest]  # none of a graph
    if known and max(known) < _LEAST:
        return (f"its largest linear layer has {max(known):,} weights, and below {_LEAST:,} unpacking costs more",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"method": Knob.choice("rtn", "gptq", "awq"), **precision.knob(layout)}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a graph with MatMulNBits for its linear layers, and how many.

    Layers of fewer than 1,024 weights stay as they are, unless there are no others.
    Raises Problem("unsupported") where no layer has a constant weight.
    """
    source = ir.load(prepared(model, tools))
    named = within(source.graph, options.keep_float)
    left = {node for nodes in named.values() for node in nodes}
    bench = Bench(source)
    weights = {node: weight for node in bench.nodes("MatMul", "Gemm") if node.name not in left
               and (weight := awq.weight(bench, node)) is not None}  # fmt: skip
    if not weights:
        raise Problem("unsupported", "no linear layer of the graph has a constant weight")
    layers = [node for node, weight in weights.items() if weight.size >= _LEAST] or list(weights)
    inputs = {}
    if options.method != "rtn":
        inputs = nbits.inputs_of(source, [node.inputs[0] for node in layers], tools, options.calibration_rows)
    facts: dict[str, object] = {"bits": options.bits, "method": options.method, "layers": len(layers)}
    if options.method == "awq":
        told = awq.scale(bench, layers, inputs, options.bits, options.block)
        facts |= {"awq_scaled": len(told.scaled), "awq_left_out": told.left_out}
        inputs = {}
    packed = []
    for layer in layers:
        weight = awq.weight(bench, layer)  # anew: its columns may have been scaled
        rows = inputs.get(layer.inputs[0].name or "") if layer.inputs[0] is not None else None
        if weight is not None:
            packed.append((layer, nbits.rounded(weight, options.bits, options.block, rows)))
    for layer, rounded in packed:
        _replace(bench, layer, rounded, options)
    strip.rewrite(bench)
    path = tools.scratch / "model.onnx"
    graphs.save(source, path)
    if named:
        facts["kept_float"] = {part: len(nodes) for part, nodes in named.items()}
    return Applied(path, facts=facts)


def _replace(bench: Bench, node: ir.Node, rounded: nbits.Rounded, options: Options) -> None:
    outputs, inputs = rounded.shape
    attributes = {
        "K": inputs, "N": outputs, "bits": options.bits, "block_size": options.block,
        "accuracy_level": 4 if options.compute == "int8" else 1,
    }  # fmt: skip
    given = [node.inputs[0], *map(bench.initializer, nbits.packed(rounded, options.bits))]
    made = bench.node(node, "MatMulNBits", given, attributes, domain=CONTRIB).outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        made = bench.node(node, "Add", [made, node.inputs[2]]).outputs[0]
    bench.replace(node.outputs[0], made)
