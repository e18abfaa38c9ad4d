"""A simulated compression problem with a known optimum, so that the search can be tested in seconds.

Eight channel groups and three blocks; speed follows the work left, the drop follows the damage of
what was removed, softened by epochs of recovery. Deterministic.
"""

import math
from dataclasses import replace

from petra_deploy.core.outcome import Engine, Figure, Graph, Latency, Measurement, Outcome, Score
from petra_deploy.core.plan import Group, Knob, Layout, Offer, Phase, Plan
from petra_deploy.core.strategy import FULL, Strategy
from petra_deploy.core.workload import Signature
from petra_deploy.driver.search.cost_model import CostModel, epochs_of, remaining_share
from petra_deploy.driver.search.encoding import Encoding

NOTHING = Signature(inputs=(), outputs=())
SIZE = 1_000_000


def plan(train_seconds_per_row: float | None = 1e-4, rows: int = 1000) -> Plan:
    channels = tuple(
        Group(
            name=f"layer{i}",
            kind="channels",
            width=64 << (i // 2),
            parameters=1000,
            macs=10_000,
            sensitivity=0.1 * (i + 1),
        )
        for i in range(8)
    )
    blocks = tuple(
        Group(name=f"block{i}", kind="block", width=1, parameters=0, macs=0, sensitivity=float(i)) for i in range(3)
    )
    layout = Layout(
        form="module",
        signature=NOTHING,
        parameters=8000,
        bytes=32_000,
        operators={"Conv2d": 8},
        groups=channels + blocks,
    )
    offers = (
        Offer(technique="drop_blocks", phase=Phase.SHRINK, acts_on="module",
              knobs={"blocks": Knob.subset("block", ladder=(0.0, 0.34, 0.67, 1.0))}),
        Offer(technique="prune", phase=Phase.SHRINK, acts_on="module", fixed={"round_to": 16},
              knobs={"ratios": Knob.real(0.0, 0.95, per="channels", ladder=(0.3, 0.5, 0.75, 0.87), strength=True)}),
        Offer(technique="recover", phase=Phase.RECOVER, acts_on="module",
              knobs={"epochs": Knob.real(1, 99), "lr": Knob.real(1e-4, 1e-2, log=True, ladder=(1e-3, 3e-3))}),
        Offer(technique="quantize_inc", phase=Phase.QUANTIZE, acts_on="module"),
        Offer(technique="quantize_ort", phase=Phase.QUANTIZE, acts_on="graph"),
    )  # fmt: skip
    return Plan(
        layout=layout, offers=offers, runtime={}, unavailable={}, train_rows=rows,
        train_seconds_per_row=train_seconds_per_row, forward_seconds_per_row=1e-5,
    )  # fmt: skip


def encoding(seed: int = 0, **facts: object) -> Encoding:
    made = plan(**facts)  # type: ignore[arg-type]
    return Encoding(made, CostModel(made, fixed=1.0), seed)


def evaluate(strategy: Strategy, problem: Plan) -> Outcome:
    """What the simulated machine answers."""
    names = [step.technique for step in strategy.steps]
    share = remaining_share(strategy, problem)
    speedup = 1.0 / (share / (2.0 if any(n.startswith("quantize") for n in names) else 1.0) + 0.01)
    damage = 0.0
    for step in strategy.steps:
        ratios = step.options.get("ratios")
        if isinstance(ratios, dict):
            damage += sum(
                (g.sensitivity or 0) * float(ratios[g.name]) ** 3 for g in problem.layout.groups if g.name in ratios
            )
        damage += 0.4 * len(step.options.get("blocks") or ())  # type: ignore[arg-type]
    drop = 3.0 * damage / (1.0 + math.log1p(epochs_of(strategy))) + 0.1 * ("quantize_inc" in names)
    return outcome(speedup, drop, strategy=strategy)


def outcome(
    speedup: float, drop: float, *, error: float = 0.1, size: int = SIZE // 10, strategy: Strategy | None = None
) -> Outcome:
    ms = Figure(value=1.0, unit="ms")
    latency = Latency(batch=1, p50=ms, p90=ms, p99=ms, first=ms, throughput=Figure(value=1e3, unit="1/s"))
    return Outcome(
        strategy=strategy or Strategy(),
        fidelity=FULL,
        seconds=0.01,
        graph=Graph(key="g", signature=NOTHING, bytes=size),
        engine=Engine(key="e", graph="g", backend="onnxruntime", signature=NOTHING, bytes=size),
        measurement=Measurement(
            candidate=(latency,), baseline=(latency,), speedups=(Figure(value=speedup, unit="ratio"),),
            load=ms, peak_memory=Figure(value=1.0, unit="bytes"), rounds="r",
        ),
        score=Score(
            metric="accuracy", split="selection", n=400, value=0.9, outputs="o", baseline=0.9,
            drop=Figure(value=drop, unit="points"), drop_error=error,
        ),
    )  # fmt: skip


def baseline() -> Outcome:
    made = outcome(1.0, 0.0, size=SIZE)
    return replace(made, seconds=1.0)


def options(strategy, technique):
    return next(step.options for step in strategy.steps if step.technique == technique)


def option(strategy, technique, name):
    return options(strategy, technique)[name]
