"""What can be known of a model, as plain data: operators, sizes, and the groups that can be made smaller.

    facts = layout(adapter, example, form="module", signature=signature, finders={"channels": prune.groups})
    facts.of_kind("channels")        # what prune acts on
    facts.refused                    # {"channels/blocks.0.qkv": "the order of its channels matters ..."}

Each technique that makes groups smaller finds them itself, and tries every one on a copy of the model:
what is offered runs and keeps the outputs' shapes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from petra_deploy.core.plan import Group, Layout
from petra_deploy.core.workload import Form, Signature
from petra_deploy.worker.model import adapter
from petra_deploy.worker.model.costs import layer_macs
from petra_deploy.worker.model.trial import Tensors, Trial

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Found:
    """What a technique found in a model: its groups, and why other parts must stay as they are."""

    groups: tuple[Group, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # name -> reason


@dataclass(frozen=True)
class Look:
    """What a finder gets: the model, a Trial of it, and the multiply-accumulates of its layers, a sample."""

    model: nn.Module
    trial: Trial
    macs: dict[str, int]
    signature: Signature

    def group(self, name: str, kind: str, width: int, layers: Iterable[str]) -> Group:
        """A group that is made of these layers, all in them, or of parameters that no layer owns."""
        names = set(layers)
        return Group(
            name=name,
            kind=kind,
            width=width,
            parameters=sum(_parameters(self.model, layer) for layer in names),
            macs=sum(macs for layer, macs in self.macs.items() if any(f"{layer}.".startswith(f"{n}.") for n in names)),
        )


Finder = Callable[[Look], Found]


def layout(model: nn.Module, example: Tensors, form: Form, signature: Signature, finders: dict[str, Finder]) -> Layout:
    """`example`: one or more rows of each input, in the signature's order; `finders`: kind of group -> what finds it.

    `model` stays as it is.
    """
    trial = Trial(model, example)
    look = Look(model, trial, layer_macs(model, trial.feeds[0]), signature)
    found = {kind: finder(look) for kind, finder in finders.items()}
    count = sum(p.numel() for p in model.parameters())
    return Layout(
        form=form,
        signature=signature,
        parameters=count,
        bytes=FLOAT32 * (count + sum(b.numel() for b in model.buffers() if b.is_floating_point())),
        operators=operators(model),
        largest=largest(model),
        groups=tuple(group for each in found.values() for group in each.groups),
        refused={f"{kind}/{name}": why for kind, each in found.items() for name, why in each.refused.items()},
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


def largest(model: nn.Module) -> dict[str, int]:
    """Class name -> numbers in the largest parameter that a module of this class owns."""
    found: dict[str, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            name = type(module).__name__
            found[name] = max(found.get(name, 0), parameter.numel())
    return dict(sorted(found.items()))


def _parameters(model: nn.Module, name: str) -> int:
    try:
        return sum(p.numel() for p in adapter.submodule(model, name).parameters())
    except AttributeError:  # a parameter that no layer owns
        owner, _, last = name.rpartition(".")
        return int(getattr(adapter.submodule(model, owner), last).numel())
