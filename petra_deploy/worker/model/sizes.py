"""Numbers that a model keeps beside its weights and that must follow a width: `x.view(rows, -1, self.width)`.

    for follower in following(model, group):      # the group, with numbers that equal its width
        breaks([follower], trial)                 # the first that holds is right

Which of the numbers that happen to be equal are meant cannot be seen, so the user's modules are tried:
those that own a layer of the group, then all of them.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from petra_deploy.worker.model.adapter import submodules
from petra_deploy.worker.model.surgery import Coupling


def following(model: nn.Module, group: Coupling) -> Iterator[Coupling]:
    """Copies of `group` whose `sizes` are set when it is cut; none where no number equals its width."""
    owners = {place.layer.rpartition(".")[0] for place in group.places}
    everywhere = tuple(
        (name, attribute)
        for name, module in [("", getattr(model, "inner", model)), *submodules(model)]
        if not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Transformer)
        for attribute, value in vars(module).items()
        if type(value) is int and value == group.width and not attribute.startswith("_")
    )
    near = tuple(size for size in everywhere if size[0] in owners)
    for sizes in dict.fromkeys((near, everywhere)):
        if sizes:
            yield replace(group, sizes=sizes)
