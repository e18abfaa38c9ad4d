"""Inspect: what the model is made of, and what each registered technique has to say to it.

A technique module may define, beside its Protocol: `KIND` and `groups(look)`, which finds its groups of that
kind in a module (worker/model/layout.py), and `shrinker(model, example)`, by which Probe makes copies with one
group of them made smaller; `fixed(layout, target)`, options that the target
settles and the search does not turn; and `NEEDS_TRAINING = True`, without which it is offered even
where there is no data to train on; `TRAINING_KNOBS`, those of its knobs that are left out there; `ORDER`, by
which the search tries quantizers (lower first); `SETTLED = True`, by which every candidate takes it; and `OFF`,
the sentence that says why it is searched only where the user asks for it (`--with`).
"""

from dataclasses import replace
from types import ModuleType
from typing import cast

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Backend
from petra_deploy.core.job import Inspect
from petra_deploy.core.plan import Inspected, Layout, Offer
from petra_deploy.core.samples import Samples
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Workload
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs._techniques import finders, loaded

FORMS = {"onnx": ".onnx", "exported": ".pt2 (torch.export)", "torchscript": "TorchScript"}


def run(job: Inspect, context: Context) -> Inspected:
    layout = _layout(job.workload, context)
    offers: list[Offer] = []
    unavailable: dict[str, str] = {}
    for name, technique in loaded(unavailable).items():
        reasons = _reasons(technique, layout, job.workload, job.target)
        if reasons:
            unavailable[name] = "; ".join(reasons)
        else:
            offers.append(_offer(name, technique, layout, job.target, job.workload.train is not None))
    served = job.target.runtime in registry.names("backend")  # a runtime without a backend here has no knobs
    backend = cast(Backend, registry.find("backend", job.target.runtime)) if served else None
    return Inspected(
        layout=layout,
        offers=tuple(offers),
        runtime=dict(backend.knobs(job.target)) if backend and not backend.obstacles(job.target) else {},
        unavailable=unavailable,
    )


def _layout(workload: Workload, context: Context) -> Layout:
    if workload.is_graph:
        from petra_deploy.worker.artifact.layout import graph_layout
        from petra_deploy.worker.workload.opened import open_graph

        found = graph_layout(open_graph(context.store, workload), workload.form, workload.signature)
        return joined(found, _of_module(workload, context)) if workload.lifted else found
    return _of_module(workload, context)


def joined(graph: Layout, module: Layout) -> Layout:
    """Sizes of the graph's file; groups and layers of its module, and the operators that are no layers."""
    from petra_deploy.worker.model.lift.layers import LAYERS

    left = {name: count for name, count in graph.operators.items() if name not in LAYERS or name == "MatMul"}
    return replace(graph, operators=left | module.operators, groups=module.groups, refused=module.refused,
                   largest=module.largest)  # fmt: skip


def _of_module(workload: Workload, context: Context) -> Layout:
    from petra_deploy.worker.model.export import example_of
    from petra_deploy.worker.model.layout import layout
    from petra_deploy.worker.quiet import cause
    from petra_deploy.worker.workload.opened import open_module

    model = open_module(context.store, workload)
    calibration = Samples.open(context.store.path(workload.calibration.key))
    example = example_of(calibration, workload.signature)
    try:
        found = layout(model, example, workload.form, workload.signature, finders())
    except Problem:
        raise
    except Exception as error:  # the user's forward
        raise Problem(
            "input",
            f"the model fails on the first rows of the data ({cause(error)})",
            "run it by hand on one batch of this data, in eval mode, and mend what it says",
        ) from error
    for name, why in found.refused.items():
        context.log(f"{name} stays as it is: {why}")
    return found


def _reasons(technique: ModuleType, layout: Layout, workload: Workload, target: Target) -> list[str]:
    """Why the technique does not apply; empty where it does."""
    if not workload.has_layers and technique.ACTS_ON == "module":
        form = FORMS.get(workload.form, workload.form)
        return [
            f"the model came as {form}, and its graph cannot be lifted into layers: {workload.unlifted} "
            "(bring the nn.Module, as a pickled model or a state_dict with --model)"
        ]
    reasons = [str(reason) for reason in technique.obstacles(layout, target)]
    if getattr(technique, "NEEDS_TRAINING", False) and workload.train is None:
        reasons.append("there is no data to train on (give --data)")
    return reasons


def _offer(name: str, technique: ModuleType, layout: Layout, target: Target, trainable: bool) -> Offer:
    idle = () if trainable else getattr(technique, "TRAINING_KNOBS", ())
    fixed = technique.fixed(layout, target) if hasattr(technique, "fixed") else {}
    return Offer(
        technique=name,
        phase=technique.PHASE,
        acts_on=technique.ACTS_ON,
        knobs={key: knob for key, knob in technique.knobs(layout, target).items() if key not in idle},
        fixed=dict(fixed),
        order=getattr(technique, "ORDER", 0),
        settled=getattr(technique, "SETTLED", False),
        off=getattr(technique, "OFF", ""),
    )
