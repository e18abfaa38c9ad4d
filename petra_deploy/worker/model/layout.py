"""What can be known of a model, as plain data: operators, sizes, and the groups that can be made smaller.

    facts = layout(adapter, example, form="module", signature=signature)
    facts.of_kind("channels")        # what prune acts on
    facts.refused                    # {"channels/blocks.0.qkv": "the order of its channels matters ..."}

Every group has been tried on a copy of the model: what is offered runs and keeps the outputs' shapes.
"""

from collections import Counter

from torch import nn

from petra_deploy.core.plan import Group, Layout
from petra_deploy.core.workload import Form, Signature
from petra_deploy.worker.model import adapter, blocks, channels, recurrent
from petra_deploy.worker.model.costs import layer_macs
from petra_deploy.worker.model.trial import Tensors, Trial

FLOAT32 = 4  # bytes


def layout(model: nn.Module, example: Tensors, form: Form, signature: Signature) -> Layout:
    """`example`: one or more rows of each input, in the signature's order. `model` stays as it is."""
    trial = Trial(model, example)
    macs = layer_macs(model, trial.feeds[0])
    coupled = channels.couplings(model, trial)
    units = recurrent.recurrences(model, trial)
    removable = blocks.removable(model, trial)
    groups = [
        Group(
            name=group.name,
            kind="channels",
            width=group.width,
            parameters=sum(_parameters(model, name) for name in set(group.makers)),
            macs=sum(macs.get(name, 0) for name in set(group.makers)),
        )
        for group in coupled.groups
    ]
    groups += [
        Group(
            name=found.name,
            kind="units",
            width=found.width,
            parameters=_parameters(model, found.name),
            macs=macs.get(found.name, 0),
        )
        for found in units.groups
    ]
    groups += [
        Group(
            name=name,
            kind="block",
            width=1,
            parameters=_parameters(model, name),
            macs=sum(m for layer, m in macs.items() if layer.startswith(f"{name}.")),
        )
        for name in removable.names
    ]
    reasons = {"channels": coupled.refused, "units": units.refused, "block": removable.refused}
    count = sum(p.numel() for p in model.parameters())
    return Layout(
        form=form,
        signature=signature,
        parameters=count,
        bytes=FLOAT32 * (count + sum(b.numel() for b in model.buffers() if b.is_floating_point())),
        operators=operators(model),
        groups=tuple(groups),
        refused={f"{kind}/{name}": why for kind, found in reasons.items() for name, why in found.items()},
    )


def operators(model: nn.Module) -> dict[str, int]:
    """Class name -> count, of torch's own layers and of user modules without parts; containers left out."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)
    found = Counter(
        type(module).__name__
        for _, module in adapter.submodules(model)
        if not isinstance(module, containers)
        and (type(module).__module__.startswith("torch.nn.") or next(module.children(), None) is None)
    )
    if not found:  # the model is one single layer
        found[type(getattr(model, "inner", model)).__name__] = 1
    return dict(sorted(found.items()))


def _parameters(model: nn.Module, name: str) -> int:
    try:
        return sum(p.numel() for p in adapter.submodule(model, name).parameters())
    except AttributeError:  # a parameter that no layer owns
        owner, _, last = name.rpartition(".")
        return int(getattr(adapter.submodule(model, owner), last).numel())
