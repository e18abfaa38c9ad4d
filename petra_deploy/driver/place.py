"""Where the engines of a run will serve, and whether that is here.

    place = find("t4", require_measured=False)
    place.why                           # "needs a CUDA device, and there is none here"; empty: it is here
    place.other_runtimes                # of the target, installed here
    place.at_hand                       # on which artifacts are built and scored here

For a target that is not here, artifacts are built and scored on ONNX Runtime's processor kernels, and
every latency is predicted from the target's file, with the error bar of its ledger.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from petra_deploy.core import ledger, machine
from petra_deploy.core.errors import BadInput, TargetAbsent
from petra_deploy.core.outcome import ErrorBar
from petra_deploy.core.plan import Plan
from petra_deploy.core.strategy import Strategy
from petra_deploy.core.target import Target

Look = Callable[[Target], tuple[Target, str | None]]
RUNTIME = "onnxruntime"  # that every machine has


@dataclass(frozen=True)
class Place:
    target: Target
    why: str = ""  # it is not here, in words that follow the target's name
    error: ErrorBar = field(default_factory=ErrorBar)  # of predictions
    elsewhere: bool = False  # on another machine, reached by ssh

    @property
    def predicted(self) -> bool:
        return bool(self.why)

    @property
    def other_runtimes(self) -> tuple[str, ...]:
        """The target's other runtimes that are installed here; none where nothing is measured here."""
        away = self.predicted or self.elsewhere
        return () if away else tuple(filter(machine.installed, self.target.other_runtimes))

    def target_of(self, strategy: Strategy) -> Target:
        """The target with the strategy's own runtime."""
        return on(self.target, strategy.backend) if strategy.backend else self.target

    def serving(self, strategy: Strategy) -> Target:
        """The same, or what stands in for it where it is not here."""
        return self.at_hand if self.predicted else self.target_of(strategy)

    @property
    def at_hand(self) -> Target:
        """The target, or what stands in for it where it is not here."""
        return replace(self.target, runtime=RUNTIME, device="cpu") if self.predicted else self.target

    def settings(self, strategy: Strategy) -> dict[str, object]:
        """Of the runtime. What stands in for a GPU computes Q/DQ pairs as they are written.

        The processor's own int8 kernels may saturate (without VNNI), which the target's do not.
        """
        return {"optimization": "none"} if self.stands_in else strategy.runtime

    @property
    def stands_in(self) -> bool:
        """Whether a processor computes what a GPU will serve."""
        return self.predicted and self.target.device != "cpu"

    def searchable(self, plan: Plan) -> Plan:
        """The plan without settings of a runtime that is not here: a prediction knows nothing of them."""
        return replace(plan, runtime={}) if self.stands_in else plan

    @property
    def sentence(self) -> str:
        """What is said first and last in a run whose latencies are predicted."""
        return (
            f"{self.target.name} is not here (it {self.why}): every latency, throughput and speedup is predicted from "
            f"its {'rates' if self.target.attained else 'data sheet'}, {self.error.words}; "
            "the metric is measured, on the very file that ships"
        )


def find(name: str, *, runtime: str = "", require_measured: bool = False, look: Look = machine.look) -> Place:
    """The target, served by `runtime` alone where one is named.

    `look` asks the machine that engines will run on, which may be another one (executors/ssh.py).
    Raises BadInput for an unknown target and for a runtime that is none of its own; TargetAbsent for an absent
    one that cannot or must not be predicted; MissingExtra where the runtime named is not installed.
    """
    described = machine.described(name)
    if runtime:
        described = replace(on(described, runtime), other_runtimes={})
    target, why = look(described)
    elsewhere = look is not machine.look
    if why is None:
        if runtime and not elsewhere:
            machine.require(runtime)
        return Place(target, elsewhere=elsewhere)
    if require_measured:
        raise TargetAbsent(
            f"{target.name} is not here, and --require-measured was given: it {why}",
            "run the same command on a machine that has it; or leave out --require-measured for a bundle whose "
            "latencies are predicted; or optimize for this machine with --target cpu",
        )
    if not predictable(target):
        lacks = f"lacks {', '.join(target.missing_rates)}" if target.missing_rates else "has no peaks and bandwidth"
        raise TargetAbsent(
            f"the target {target.name} is not here: it {why}; and its file {lacks} to predict from",
            "`petra-deploy targets list` shows which targets are here",
        )
    return Place(target, why, ledger.error_bar(target))


def on(target: Target, runtime: str) -> Target:
    """The target as `runtime` serves it. Raises BadInput where it does not."""
    if runtime == target.runtime:
        return target
    if runtime not in target.other_runtimes:
        known = ", ".join((target.runtime, *target.other_runtimes))
        raise BadInput(
            f"{target.name} has no runtime {runtime!r}", f"it has {known}; docs/targets.md says how to add one"
        )
    others = {name: many for name, many in target.other_runtimes.items() if name != runtime}
    return replace(
        target,
        runtime=runtime,
        precisions=target.other_runtimes[runtime],
        other_runtimes={target.runtime: target.precisions, **others},
    )


def predictable(target: Target) -> bool:
    """Whether the target's file says enough for a prediction."""
    peaks = target.bandwidth_gb_s is not None and bool({"fp32", "fp16"} & set(target.peaks_tflops))
    return target.attained or (peaks and not target.missing_rates)
