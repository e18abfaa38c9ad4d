"""Static INT8 by Intel Neural Compressor, laid out so that ONNX Runtime fuses all of it.

INC exports the module (torch.export), observes it on calibration rows, and writes Q/DQ pairs with
the scales it found: activations uint8, weights int8 per channel, from the range ("minmax") or
from a histogram ("kl"). Embeddings and LSTM weights become int8 too. The result is a torch.fx graph
that `worker/model/export.py` turns into QDQ ONNX. Sources: neural-compressor 3.10, PT2E static
quantization; Jacob et al., arXiv 1712.05877.
"""

import collections
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model.export import capturing, dynamic_shapes, example_of
from petra_deploy.worker.model.quiet import cause, quiet

PHASE = Phase.QUANTIZE
ACTS_ON: ActsOn = "module"
BATCH_ROWS = 32  # rows a calibration batch
WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear", "Embedding", "LSTM", "MultiheadAttention")


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    algo: Literal["minmax", "kl"] = "minmax"  # how an activation's scale is found
    calibration_rows: Annotated[int, Ge(1)] = 256
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    skip_head: bool = False  # leave the layer that makes an output in float
    lower: bool = True  # to ONNX Runtime's own operators; False: plain Q/DQ for other runtimes


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if "int8" not in target.precisions:
        return (f"{target.name} has no int8",)
    if target.device == "cuda":
        return ("TensorRT wants int8 activations around zero; quantize_ort writes them",)
    weighted = [name for name in WEIGHTED if layout.operators.get(name)]
    if not weighted:
        return ("the model has no convolution, linear, embedding or LSTM layer",)
    if weighted == ["LSTM"] and not _lowers(target):
        return (f"int8 LSTM exists for ONNX Runtime on a CPU only, not for {target.runtime}",)
    return ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"algo": Knob.choice("minmax", "kl")}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return {"reduce_range": target.saturates, "lower": _lowers(target)}


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return `model` as a quantized torch.fx graph, and how many of its operators are int8.

    Raises Problem("unsupported") where torch.export cannot take the model or nothing in it became int8.
    """
    with quiet():
        from neural_compressor.torch.quantization import convert, prepare

        from petra_deploy.worker.techniques import _concat_norms
        from petra_deploy.worker.techniques._inc_static import OrtStaticConfig

    config = OrtStaticConfig(
        act_algo=options.algo, reduce_range=options.reduce_range, lstm=options.lower, skip_head=options.skip_head
    )
    example = example_of(tools.calibration, tools.signature)
    exported = _export(copy.deepcopy(model).cpu().eval(), example, tools)
    _concat_norms.fold(exported)
    rows = min(options.calibration_rows, len(tools.calibration))
    with quiet(), torch.no_grad():
        prepared = prepare(exported, config, example_inputs=example)
        for batch in _batches(tools, rows):
            prepared(*batch)
        converted = convert(prepared)
    counts = _count(converted)
    if not counts["int8"]:
        found = ", ".join(sorted(counts["float"])) or "none"
        raise Problem(
            "unsupported",
            f"nothing in the model became int8 (operators with weights: {found})",
            "GRU and plain RNN layers have no int8 kernel; a last layer below 16,384 weights stays in float on purpose",
        )
    converted.meta["lower"] = options.lower
    facts: dict[str, object] = {"int8": counts["int8"], "float": counts["float"], "calibration_rows": rows}
    return Applied(converted, facts=facts)


def _export(model: torch.nn.Module, example: tuple[torch.Tensor, ...], tools: Tools) -> Any:
    """torch.export following Python's own control flow; where that refuses, INC's export.

    INC's first runs the bytecode tracer, which gives the same graph in five times the time.
    """
    shapes = dynamic_shapes(model, tools.signature)
    with quiet(), capturing():
        try:
            exported: Any = torch.export.export(model, example, dynamic_shapes=shapes, strict=False).module()
        except Exception as error:
            return _export_by_inc(model, example, shapes, cause(error))
    exported._exported = True  # what INC's prepare looks for
    exported.dynamic_shapes = shapes
    return exported


def _export_by_inc(model: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: Any, reason: str) -> Any:
    from neural_compressor.torch.export import export

    try:
        return export(model, example, dynamic_shapes=shapes)
    except RuntimeError as error:  # it says "check the logs", and no more
        raise Problem("unsupported", f"torch.export cannot take the model: {reason}") from error


def _batches(tools: Tools, rows: int) -> Iterator[tuple[torch.Tensor, ...]]:
    first = tools.signature.inputs[0].shape
    size = first[0] if first and isinstance(first[0], int) else BATCH_ROWS
    for feeds, _ in tools.calibration.first(rows).batches(size):
        if tools.signature.dynamic_batch or len(next(iter(feeds.values()))) == size:
            yield tuple(torch.from_numpy(feeds[spec.name]) for spec in tools.signature.inputs)


def _count(model: torch.fx.GraphModule) -> dict[str, dict[str, int]]:
    """Operators with weights: {"int8": {name: count}, "float": {name: count}}."""
    counts: dict[str, collections.Counter[str]] = {"int8": collections.Counter(), "float": collections.Counter()}
    for node in model.graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        if node.op == "call_function" and name in ("conv1d", "conv2d", "conv3d", "linear", "embedding", "lstm", "gru"):
            weights = node.args[2] if name in ("lstm", "gru") else [node.args[0 if name == "embedding" else 1]]
            packed = any("dequantize" in str(w.target) for w in weights if isinstance(w, torch.fx.Node))
            counts["int8" if packed else "float"][name] += 1
    return {kind: dict(counter) for kind, counter in counts.items()}


def _lowers(target: Target) -> bool:
    return target.runtime == "onnxruntime" and target.device == "cpu"
