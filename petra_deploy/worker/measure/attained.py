"""What each kind of operator costs on a processor whose rates were measured, not read off a data sheet.

    parts(work)                 # {"attained_gops.fp32.conv": 0.0094, "operator_us.fp32.layer": 1.0, ...}
    milliseconds(works, target) # of one call

A call takes the sum, over its operators, of their multiply-accumulates at the rate of their kind and
precision, their bytes at that of theirs, and a start each. `rates.py` measures small graphs, counts
their parts by this very function and fits the rates; so nothing here holds a number.
"""

from collections.abc import Sequence

from petra_deploy.core.outcome import Work
from petra_deploy.core.target import Target

_CONV = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "ConvTranspose")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_CURVED = (
    "Softmax", "LogSoftmax", "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "Gelu",
    "FastGelu", "BiasGelu", "QuickGelu", "Erf", "Sigmoid", "Tanh", "Exp", "Log", "Pow", "Mish", "Softplus", "Elu",
    "HardSwish", "InstanceNormalization", "GroupNormalization", "QLinearSigmoid", "QLinearSoftmax",
)  # fmt: skip
_MOVED = ("Transpose", "Concat", "Slice", "Split", "Gather", "Expand", "Pad", "QLinearConcat", "Tile", "Resize")
_CONVERTED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast")
_FREE = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Dropout")


def parts(work: Work) -> dict[str, float]:
    """What `work` uses, by figure of a target: 10^9 operations, 10^9 bytes, starts."""
    precision = "int8" if work.precision == "int8" else "fp32"
    found = {f"operator_us.{precision}{'.layer' if work.macs else ''}": 1.0}
    if work.op in _FREE:
        return found
    if not work.macs:
        kind = moving(work)
        name = f"{precision}.{kind}" if kind == "elementwise" else kind
        return found | {f"attained_gb_s.{name}": (work.weight_bytes + work.activation_bytes) / 1e9}
    kind = computing(work)
    found[f"attained_gops.{precision}.{kind}"] = 2 * work.macs / 1e9
    found[f"attained_gb_s.{precision}.activations"] = work.activation_bytes / 1e9
    if kind == "recurrent":
        found[f"operator_us.{precision}.step"] = work.steps
        found["attained_gb_s.states"] = work.weight_bytes * work.steps / 1e9
    else:
        found["attained_gb_s.weights"] = work.weight_bytes / 1e9
    if kind == "conv":
        size = 1 if precision == "int8" else 4
        found[f"attained_gb_s.{precision}.gathered"] = work.macs / work.outer * size / 1e9
    return {name: amount for name, amount in found.items() if amount}


def milliseconds(works: Sequence[Work], target: Target) -> float:
    """Of one call. Raises KeyError for a target without these rates (`Target.attained`)."""
    seconds = 0.0
    for name, amount in total(works).items():
        table, _, key = name.partition(".")
        rate: float = getattr(target, table)[key]
        seconds += amount * rate / 1e6 if table == "operator_us" else amount / rate
    return 1e3 * seconds


def total(works: Sequence[Work]) -> dict[str, float]:
    """The parts of one call."""
    found = {"operator_us.call": 1.0}
    for work in works:
        for name, amount in parts(work).items():
            found[name] = found.get(name, 0.0) + amount
    return found


def computing(work: Work) -> str:
    """The kind of an operator that multiplies and accumulates."""
    if work.op == "DepthwiseConv":
        return "depthwise"
    if work.op in _CONV:
        return "conv" if work.taps > 1 else "conv1x1"
    return "recurrent" if work.op in _RECURRENT else "matmul"


def moving(work: Work) -> str:
    """The kind of an operator that does not."""
    for kind, operators in (("curved", _CURVED), ("moved", _MOVED), ("converted", _CONVERTED)):
        if work.op in operators:
            return kind
    return "elementwise"
