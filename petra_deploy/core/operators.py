"""Where an engine's time goes: operators as they ran, by layer of the original model (docs/profiling.md).

    report.new.layer("layer1.0.conv1").us           # of each round, microseconds a call
    report.slower[0].sentence                       # "layer1.0.conv1: QLinearConv 41 us -> Conv 88 us ..."

A backend says what it ran (`Ran`), worker/artifact/attribution.py for which layers, driver/operators.py what changed.
A profiler adds about the same to every operator's time. Where the sum over operators is more than a call without the
profiler takes, as much is taken off each as brings the sum down to that: `added` says how much.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from petra_deploy.core.data import Data
from petra_deploy.core.outcome import Figure

How = Literal["own", "follows", "converts"]
FLOAT = ("fp64", "fp32", "fp16", "bf16")
INTEGER = ("int8", "int4")


@dataclass(frozen=True, kw_only=True)
class Ran(Data):
    """An operator that a runtime ran, in its own words.

    `covers` are the names in model.onnx, of nodes, tensors or initializers, that it stands for; `reads` and
    `writes` are tensors of the graph as it ran, empty where the runtime tells none.
    """

    name: str
    operator: str
    precision: str  # that it computes in: "fp32", "int8" ...; empty where the runtime does not say
    us: float  # a call
    covers: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    converts: bool = False  # between types or layouts; computes nothing


@dataclass(frozen=True, kw_only=True)
class RanAll(Data):
    """What the optional `profile` of a backend answers: one fresh engine, its operators in order of execution."""

    operators: tuple[Ran, ...]
    call_us: float  # a whole call with the profiler on


@dataclass(frozen=True, kw_only=True)
class Operator(Data):
    """`layers`: mostly one; several where the runtime fused them; none where nothing tells.

    `how`: it holds weights of its layer, it works on that layer's output, or it converts what the layer takes.
    """

    name: str
    operator: str
    precision: str
    layers: tuple[str, ...]
    how: How
    us: tuple[float, ...]  # a call, one a round, without what the profiler adds
    time: Figure  # us
    share: float  # of the sum over operators


@dataclass(frozen=True, kw_only=True)
class OpsProfile(Data):
    """One engine. Each list of times holds one value a round, microseconds a call."""

    runtime: str
    batch: int
    operators: tuple[Operator, ...]
    layers: tuple[str, ...]  # of model.onnx, those with weights, in its order
    quantized: tuple[str, ...] = ()  # of these, those whose weights are integers in model.onnx
    whole_us: tuple[float, ...]  # without the profiler
    profiled_us: tuple[float, ...]
    whole: Figure  # us
    profiled: Figure  # us
    added: Figure  # us that the profiler adds to each operator; taken off
    unattributed: Figure  # us of a call without the profiler, by processor time, outside of every operator

    @property
    def conversions_us(self) -> float:
        return sum(o.time.known() for o in self.operators if o.how == "converts")

    @property
    def operators_us(self) -> float:
        return sum(o.time.known() for o in self.operators)


@dataclass(frozen=True, kw_only=True)
class Profiled(Data):
    """The answer of a ProfileOps job; rounds of both engines were run in turns."""

    engine: OpsProfile
    base: OpsProfile | None = None
    machine: dict[str, object] = field(default_factory=dict)
    sittings: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Side(Data):
    """A layer, or layers that a runtime fused, in one engine."""

    operators: tuple[str, ...]  # those that hold its weights; where none does, all others but conversions
    precision: str
    time: Figure  # us, everything that belongs to the layer
    conversions: Figure  # us, of which conversions


@dataclass(frozen=True, kw_only=True)
class Change(Data):
    """A layer before and after. A side is None where that engine has no such layer."""

    layer: str
    base: Side | None
    new: Side | None
    difference: Figure  # us, new - base, paired over rounds; all layers of a comparison share alpha
    why: str = ""  # what else is known, such as "stayed float"
    sentence: str

    @property
    def slower(self) -> bool:
        return bool(self.base and self.new and self.difference.low is not None and self.difference.low > 0)

    @property
    def faster(self) -> bool:
        return bool(self.base and self.new and self.difference.high is not None and self.difference.high < 0)


@dataclass(frozen=True, kw_only=True)
class OpsReport(Data):
    """What `profile-ops` answers. Without a base, each change has only its `new` side."""

    schema: Literal["petra-deploy/operators/1"] = "petra-deploy/operators/1"
    target: str
    engine: str  # as they were named
    base: str = ""
    profiled: Profiled
    changes: tuple[Change, ...]  # every layer, the one that takes longest first
    stayed_float: tuple[str, ...] = ()  # a sentence for each layer in float of an engine that computes in integers
