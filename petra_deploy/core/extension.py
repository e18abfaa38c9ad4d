"""What an extension offers: a module that satisfies one of these Protocols is one.

Its name is its file's name. Ours are found by listing the folder, third parties' by an entry
point of group `petra_deploy.<kind>` whose value is a module (`core/registry.py`).
`docs/extending.md` walks through a new technique from the first line to its contract test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from petra_deploy.core.data import Data
from petra_deploy.core.plan import ActsOn, Knob, Layout, Offer, Phase
from petra_deploy.core.target import Target
from petra_deploy.core.workload import MetricSpec, Signature

if TYPE_CHECKING:
    import numpy as np
    import optuna

    from petra_deploy.core.outcome import Engine, Graph
    from petra_deploy.core.samples import Samples

__all__ = [
    "Applied", "Backend", "Data", "Executor", "Knob", "Layout", "Offer", "Phase", "Runner", "Sampler",
    "Space", "Target", "Technique", "Tools",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tools:
    """All that a technique can reach. Rows are numpy; make tensors of them yourself."""

    calibration: "Samples"
    train: "Samples | None"
    teacher: Callable[[], Any]  # the original module, eval mode: a fresh copy each call
    teacher_outputs: Callable[[], "Sequence[np.ndarray]"]  # of the original over all rows of `train`
    signature: Signature
    metric: MetricSpec
    seed: int
    scratch: Path  # an empty folder of the step's own
    log: Callable[[str], None]
    device: str = "cpu"
    epochs_share: float = 1.0  # the fidelity's share of training epochs
    # (name, make): arrays that depend on the original and the training rows alone, made once a run for each name
    kept: "Callable[[str, Callable[[], Sequence[np.ndarray]]], Sequence[np.ndarray]]" = lambda name, make: make()


@dataclass(frozen=True)
class Applied:
    """A technique's result: the new module (or the path of the new graph) and what changed."""

    model: Any
    facts: dict[str, object] = field(default_factory=dict)


class Technique(Protocol):
    """A step of a strategy. `ACTS_ON` "module": `apply` gets and gives a torch.nn.Module whose
    forward takes the signature's inputs as positional tensors and returns a tuple of tensors;
    "graph": it gets and gives the path of an ONNX file. The input stays untouched.
    """

    PHASE: Phase
    ACTS_ON: ActsOn
    Options: type[Data]

    def obstacles(self, layout: Layout, target: Target) -> Sequence[str]: ...
    def knobs(self, layout: Layout, target: Target) -> Mapping[str, Knob]: ...
    def apply(self, model: Any, options: Any, tools: Tools) -> Applied: ...


class Runner(Protocol):
    """An open engine. A context manager; closing twice is harmless."""

    def run(self, feeds: "Mapping[str, np.ndarray]") -> "list[np.ndarray]": ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """A runtime: makes engines of graphs and opens them.

    One with a profiler also offers `profile(folder, settings, feeds, calls, scratch, *, seed=0) -> RanAll`
    (core/operators.py): a fresh engine runs `calls` calls, each with the next of `feeds`, after a few to warm up;
    `scratch` is an empty folder. What it cannot time it refuses with Problem "unsupported". Without this function
    `profile-ops` says that the backend has no profiler.
    """

    def obstacles(self, target: Target) -> Sequence[str]: ...
    def knobs(self, target: Target) -> Mapping[str, Knob]: ...
    def build(self, graph: "Graph", model: Path, target: Target, settings: Mapping[str, object],
              folder: Path) -> "Engine": ...  # fmt: skip
    def open(self, folder: Path, settings: Mapping[str, object], *, seed: int = 0) -> Runner: ...
    def describe(self) -> dict[str, str]: ...


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sampler searches: names of coefficients, each in [0, 1]."""

    names: tuple[str, ...]


class Sampler(Protocol):
    """`presets` are known-good points, evaluated first by the study."""

    def create(
        self, space: Space, presets: Sequence[Mapping[str, float]], seed: int
    ) -> "optuna.samplers.BaseSampler": ...


class Executor(Protocol):
    """Where jobs run. `run` blocks and may be called from several threads.

    One that has jobs done on another machine also offers `look(target) -> (target, why it is not there)`
    and `elsewhere(job) -> facts` of that machine, which the answer depends on (executors/ssh.py); one whose children
    import an overlay of packages, the versions of those (executors/local.py).
    """

    def run(self, job: Any) -> Any: ...
    def close(self) -> None: ...
