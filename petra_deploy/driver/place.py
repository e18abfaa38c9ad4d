"""Where the engines of a run will serve, and whether that is here.

    place = find("t4", require_measured=False)
    place.why                           # "needs a CUDA device, and there is none here"; empty: it is here
    place.at_hand                       # on which artifacts are built and scored here

For a target that is not here, artifacts are built and scored on ONNX Runtime's processor kernels, and
every latency is predicted from the target's file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from petra_deploy.core import machine
from petra_deploy.core.errors import TargetAbsent
from petra_deploy.core.strategy import Strategy
from petra_deploy.core.target import Target

Look = Callable[[Target], tuple[Target, str | None]]
RUNTIME = "onnxruntime"  # that every machine has


@dataclass(frozen=True)
class Place:
    target: Target
    why: str = ""  # it is not here, in words that follow the target's name

    @property
    def predicted(self) -> bool:
        return bool(self.why)

    @property
    def at_hand(self) -> Target:
        """The target, or what stands in for it where it is not here."""
        return replace(self.target, runtime=RUNTIME, device="cpu") if self.predicted else self.target

    def settings(self, strategy: Strategy) -> dict[str, object]:
        """Of the runtime. What stands in computes Q/DQ pairs as they are written.

        The processor's own int8 kernels may saturate (without VNNI), which the target's do not.
        """
        return {**strategy.runtime, "optimization": "none"} if self.predicted else strategy.runtime

    @property
    def sentence(self) -> str:
        """What is said first and last in a run whose latencies are predicted."""
        return (
            f"{self.target.name} is not here (it {self.why}): every latency, throughput and speedup is predicted from "
            "its data sheet, within a factor of two; the metric is measured, on the very file that ships"
        )


def find(name: str, *, require_measured: bool = False, look: Look = machine.look) -> Place:
    """`look` asks the machine that engines will run on, which may be another one (executors/ssh.py).

    Raises BadInput for an unknown target; TargetAbsent for an absent one that cannot or must not be predicted.
    """
    target, why = look(machine.described(name))
    if why is None:
        return Place(target)
    if require_measured:
        raise TargetAbsent(
            f"{target.name} is not here, and --require-measured was given: it {why}",
            "run the same command on a machine that has it; or leave out --require-measured for a bundle whose "
            "latencies are predicted; or optimize for this machine with --target cpu",
        )
    if not predictable(target):
        raise TargetAbsent(
            f"the target {target.name} is not here: it {why}; and its file has no peaks and bandwidth to predict from",
            "`petra-deploy targets list` shows which targets are here",
        )
    return Place(target, why)


def predictable(target: Target) -> bool:
    """Whether the target's file says enough for a prediction."""
    return target.bandwidth_gb_s is not None and bool({"fp32", "fp16"} & set(target.peaks_tflops))
