"""What the quantizers by Intel Neural Compressor share: the exported program, INC's prepare and convert, islands.

source = opened(module, options, tools)
converted = quantized(source, options, tools, after=train)    # `train` gets the observed graph, and changes it
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
from petra_deploy.core.extension import Data, Layout, Target, Tools
from petra_deploy.worker.model import adapter, blocks, passes, precision
from petra_deploy.worker.model.export import capturing, dynamic_shapes, example_of
from petra_deploy.worker.model.islands import Attempts, Relieved, relieve
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.quiet import cause, quiet

_JUDGED = 32  # rows on which the quantized model is compared with the float one
Hook = Callable[[torch.fx.GraphModule], None]
WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear", "Embedding", "LSTM", "MultiheadAttention")


@dataclass(frozen=True, kw_only=True)
class Static(Data):
    algo: Literal["minmax", "kl"] = "minmax"  # how an activation's scale is found
    calibration_rows: Annotated[int, Ge(1)] = 256
    reduce_range: bool = False  # 7-bit weights, for kernels whose 16-bit sums saturate
    granularity: Literal["channel", "tensor"] = "channel"  # what has a scale of its own in a weight
    skip_head: bool = False  # leave the layer that makes an output in float
    keep_float: tuple[str, ...] = ()  # modules of the model that stay in float
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
    if weighted == ["LSTM"] and not lowers(target):
        return (f"int8 LSTM exists for ONNX Runtime on a CPU only, not for {target.runtime}",)
    none = f"{precision.KIND}/model"
    return (layout.refused[none],) if none in layout.refused else ()


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    """Options that the target settles."""
    return {"reduce_range": target.saturates, "lower": lowers(target)}


@dataclass(frozen=True)
class Source:
    """A module, its exported program, and which parts that are to stay in float it has no more."""

    model: torch.nn.Module
    exported: Any
    example: Tensors
    gone: tuple[str, ...]


def opened(model: torch.nn.Module, options: Static, tools: Tools) -> Source:
    """Raises Problem("unsupported") where torch.export cannot take it, or `keep_float` names what it never had."""
    known = {name for name, _ in adapter.submodules(model)}
    gone = tuple(name for name in options.keep_float if name not in known)
    if missing := [name for name in gone if not blocks.gone(model, name)]:
        raise Problem("unsupported", f"the model has no part {missing[0]!r} to keep in float")
    with quiet():
        from petra_deploy.worker.techniques import _concat_norms

    example = example_of(tools.calibration, tools.signature)
    exported = program(copy.deepcopy(model).cpu().eval(), example, tools)
    _concat_norms.fold(exported)
    return Source(model, exported, example, gone)


def relieved(
    source: Source, options: Static, tools: Tools, after: Hook | None = None
) -> Relieved[torch.fx.GraphModule]:
    """`source` quantized, with islands of float where int8 ruins its answers. Raises as `quantized` does."""
    rows = list(batches(tools, _JUDGED))
    expected = answers(source.model, rows)
    attempts = Attempts(
        lambda kept: quantized(source, options, tools, kept, after=after),
        lambda made: precision.sqnr_db(expected, answers(made, rows)),
        lambda name: precision.sqnr_db(expected, answers(precision.rounded(source.model, name), rows)),
    )
    return relieve(
        attempts, lambda: precision.parts(source.model), most=options.islands, least_db=options.least_db
    )  # fmt: skip


def quantized(
    source: Source, options: Static, tools: Tools, islands: tuple[str, ...] = (), *,
    before: Hook | None = None, after: Hook | None = None,
) -> torch.fx.GraphModule:  # fmt: skip
    """The program with these parts in float too. `before` and `after` calibration the observed graph may be changed.

    Raises Problem("unsupported") where nothing became int8.
    """
    with quiet():
        from neural_compressor.torch.quantization import convert, prepare

        from petra_deploy.worker.techniques._inc_static import OrtStaticConfig

    config = OrtStaticConfig(
        act_algo=options.algo, reduce_range=options.reduce_range, lstm=options.lower, skip_head=options.skip_head,
        w_granularity=f"per_{options.granularity}", keep_float=(*options.keep_float, *islands),
    )  # fmt: skip
    again = copy.deepcopy(source.exported)
    again._exported, again.dynamic_shapes = True, source.exported.dynamic_shapes  # what INC's prepare looks for
    with quiet(), torch.no_grad():
        prepared = prepare(again, config, example_inputs=source.example)
        if before is not None:
            before(prepared)
        for batch in batches(tools, min(options.calibration_rows, len(tools.calibration))):
            prepared(*batch)
        if after is not None:
            after(prepared)
        converted: torch.fx.GraphModule = convert(prepared)
    counts = count(converted)
    if not counts["int8"]:
        found = ", ".join(sorted(counts["float"])) or "none"
        raise Problem(
            "unsupported",
            f"nothing in the model became int8 (operators with weights: {found})",
            "GRU and plain RNN layers have no int8 kernel; a last layer below 16,384 weights stays in float on purpose",
        )
    converted.meta["lower"] = options.lower
    return converted


def facts_of(made: torch.fx.GraphModule, source: Source, options: Static, tools: Tools) -> dict[str, object]:
    """How many operators with weights are int8 and float, on how many rows, and what stayed in float on purpose."""
    facts: dict[str, object] = {
        **count(made),
        "calibration_rows": min(options.calibration_rows, len(tools.calibration)),
    }
    if options.keep_float:
        facts["kept_float"] = [name for name in options.keep_float if name not in source.gone]
    if source.gone:
        facts["gone"] = list(source.gone)
    return facts


def answers(model: torch.nn.Module, batches: Sequence[Tensors]) -> list[Any]:
    """Each output over all rows, as arrays."""
    with torch.no_grad(), quiet():
        found = [[output.detach().cpu().numpy() for output in model(*batch)] for batch in batches]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def program(model: torch.nn.Module, example: tuple[torch.Tensor, ...], tools: Tools) -> Any:
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


def batches(tools: Tools, rows: int) -> Iterator[Tensors]:
    return passes.batches(tools.calibration, tools.signature, rows)


def count(model: torch.fx.GraphModule) -> dict[str, dict[str, int]]:
    """Operators with weights: {"int8": {name: count}, "float": {name: count}}."""
    counts: dict[str, collections.Counter[str]] = {"int8": collections.Counter(), "float": collections.Counter()}
    for node in model.graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        if node.op == "call_function" and name in ("conv1d", "conv2d", "conv3d", "linear", "embedding", "lstm", "gru"):
            weights = node.args[2] if name in ("lstm", "gru") else [node.args[0 if name == "embedding" else 1]]
            packed = any("dequantize" in str(w.target) for w in weights if isinstance(w, torch.fx.Node))
            counts["int8" if packed else "float"][name] += 1
    return {kind: dict(counter) for kind, counter in counts.items()}


def lowers(target: Target) -> bool:
    return target.runtime == "onnxruntime" and target.device == "cpu"
