"""Static INT8 by Intel Neural Compressor, laid out so that ONNX Runtime fuses all of it.

INC exports the module (torch.export), observes it on calibration rows, and writes Q/DQ pairs with
the scales it found: activations uint8, weights int8 per channel, from the range ("minmax") or
from a histogram ("kl"). Embeddings and LSTM weights become int8 too. The result is a torch.fx graph
that `worker/model/export.py` turns into QDQ ONNX. Sources: neural-compressor 3.10, PT2E static
quantization; Jacob et al., arXiv 1712.05877.
"""

import collections
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, blocks, precision
from petra_deploy.worker.model.export import capturing, dynamic_shapes, example_of
from petra_deploy.worker.model.islands import Attempts, relieve
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.quiet import cause, quiet
from petra_deploy.worker.model.trial import Tensors

PHASE = Phase.QUANTIZE
ACTS_ON: ActsOn = "module"
BATCH_ROWS = 32  # rows a calibration batch
_JUDGED = 32  # rows on which the quantized model is compared with the float one
WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear", "Embedding", "LSTM", "MultiheadAttention")


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    algo: Literal["minmax", "kl"] = "minmax"  # how an activation's scale is found
    calibration_rows: Annotated[int, Ge(1)] = 256
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    granularity: Literal["channel", "tensor"] = "channel"  # what has a scale of its own in a weight
    skip_head: bool = False  # leave the layer that makes an output in float
    keep_float: tuple[str, ...] = ()  # modules of the model that stay in float
    bias_correction: bool = False  # take the mean error of the rounded weights out of the biases
    islands: Annotated[int, Ge(0)] = 4  # most blocks that go back to float where the answers are ruined
    least_db: float = 10.0  # of signal to noise at the outputs, below which they are
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
    return (layout.refused[f"{KIND}/model"],) if f"{KIND}/model" in layout.refused else ()


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {
        "algo": Knob.choice("minmax", "kl"), "granularity": Knob.choice("channel", "tensor"), **precision.knob(layout),
    }  # fmt: skip


KIND = precision.KIND


def groups(look: Look) -> Found:
    """The parts that can be int8 or float each, for every quantizer's `keep_float`."""
    names = precision.parts(look.model)
    why = precision.nothing(look.model)
    return Found(tuple(look.group(name, KIND, 1, [name]) for name in names), {"model": why} if why else {})


def shrinker(model: torch.nn.Module, example: Tensors) -> Callable[[Group], torch.nn.Module]:
    """What gives a copy of `model` with one part rounded to int8."""
    return lambda group: precision.rounded(model, group.name)


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return {"reduce_range": target.saturates, "lower": _lowers(target)}


def apply(model: torch.nn.Module, options: Options, tools: Tools) -> Applied:
    """Return `model` as a quantized torch.fx graph, how many of its operators are int8, and how far its answers are.

    Raises Problem("unsupported") where torch.export cannot take the model, nothing in it became int8, or
    `keep_float` names a module that it never had.
    """
    known = {name for name, _ in adapter.submodules(model)}
    gone = [name for name in options.keep_float if name not in known]
    if missing := [name for name in gone if not blocks.gone(model, name)]:
        raise Problem("unsupported", f"the model has no part {missing[0]!r} to keep in float")
    with quiet():
        from petra_deploy.worker.techniques import _concat_norms

    example = example_of(tools.calibration, tools.signature)
    exported = _export(copy.deepcopy(model).cpu().eval(), example, tools)
    _concat_norms.fold(exported)
    facts: dict[str, object] = {"calibration_rows": min(options.calibration_rows, len(tools.calibration))}
    rows = list(_batches(tools, _JUDGED))
    expected = _answers(model, rows)
    attempts = Attempts(
        lambda kept: _quantized(exported, example, options, tools, (*options.keep_float, *kept), facts),
        lambda made: precision.sqnr_db(expected, _answers(made, rows)),
        lambda name: precision.sqnr_db(expected, _answers(precision.rounded(model, name), rows)),
    )
    relieved = relieve(
        attempts, lambda: precision.parts(model), most=options.islands, least_db=options.least_db
    )  # fmt: skip
    converted = relieved.artifact
    converted.meta["lower"] = options.lower
    if options.keep_float:
        facts["kept_float"] = [name for name in options.keep_float if name not in gone]
    if gone:
        facts["gone"] = gone
    return Applied(converted, facts={**_count(converted), **facts, **relieved.facts()})


def _quantized(
    exported: Any, example: Tensors, options: Options, tools: Tools, kept: tuple[str, ...], facts: dict[str, object]
) -> torch.fx.GraphModule:
    """A quantized copy of an exported module, with these parts in float."""
    with quiet():
        from neural_compressor.torch.quantization import convert, prepare

        from petra_deploy.worker.techniques import _inc_bias
        from petra_deploy.worker.techniques._inc_static import OrtStaticConfig

    config = OrtStaticConfig(
        act_algo=options.algo, reduce_range=options.reduce_range, lstm=options.lower, skip_head=options.skip_head,
        w_granularity=f"per_{options.granularity}", keep_float=kept,
    )  # fmt: skip
    again = copy.deepcopy(exported)
    again._exported, again.dynamic_shapes = True, exported.dynamic_shapes  # what INC's prepare looks for
    rows = min(options.calibration_rows, len(tools.calibration))
    with quiet(), torch.no_grad():
        prepared = prepare(again, config, example_inputs=example)
        for batch in _batches(tools, rows):
            prepared(*batch)
        if options.bias_correction:
            facts["biases_corrected"] = _inc_bias.correct(prepared, _batches(tools, rows))
        converted: torch.fx.GraphModule = convert(prepared)
    counts = _count(converted)
    if not counts["int8"]:
        found = ", ".join(sorted(counts["float"])) or "none"
        raise Problem(
            "unsupported",
            f"nothing in the model became int8 (operators with weights: {found})",
            "GRU and plain RNN layers have no int8 kernel; a last layer below 16,384 weights stays in float on purpose",
        )
    return converted


def _answers(model: torch.nn.Module, batches: Sequence[Tensors]) -> list[Any]:
    """Each output over all rows, as arrays."""
    with torch.no_grad(), quiet():
        found = [[output.detach().cpu().numpy() for output in model(*batch)] for batch in batches]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


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
