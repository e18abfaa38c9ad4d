"""A copy of a model whose attention can be cut: rewritten to plain layers, pinned where it must be.

loose = loosened(model, trial)
loose.model, loose.trial       # answers exactly as `model` does; the same objects where nothing was to do
loose.heads
"""

from dataclasses import dataclass, field, replace

from torch import nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.adapter import submodule
from petra_deploy.worker.model.attention.heads import Heads, attention_heads, reads_width
from petra_deploy.worker.model.attention.pins import pin
from petra_deploy.worker.model.attention.plain import plain
from petra_deploy.worker.model.attention.windows import windows
from petra_deploy.worker.model.costs import layer_macs
from petra_deploy.worker.model.layout import Look
from petra_deploy.worker.model.trial import Trial


@dataclass(frozen=True)
class Loose:
    model: nn.Module
    trial: Trial
    heads: tuple[Heads, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # attention module -> why its heads must stay


def loosened(model: nn.Module, trial: Trial) -> Loose:
    """`trial` is one of `model`, which stays as it is; it remembers the answer."""
    if "loose" not in trial.known:
        trial.known["loose"] = _loosened(model, trial)
    found: Loose = trial.known["loose"]
    return found


def _loosened(model: nn.Module, trial: Trial) -> Loose:
    unlocked = plain(model, trial)
    again = trial if unlocked is model else Trial(unlocked, trial.feeds[0])
    found = attention_heads(unlocked, again)
    read = {heads.layers: heads for heads in found.heads}
    taken = {layer for layers in read for layer in layers}
    pins: dict[str, tuple[list[str], str]] = {}
    for window in windows(unlocked, again.feeds[0]):
        heads = read.get(window.layers)
        if heads is None and (not window.owner or taken & window.layers):
            continue  # no attention of one head either
        if (heads is not None and heads.pinned) or reads_width(window):
            taken |= window.layers
            pins[window.owner] = (window.readers, window.local(window.out))
    if not pins:
        return Loose(unlocked, again, found.heads, found.refused)
    pinned = surgery.twin(unlocked)
    for name, (ins, out) in pins.items():
        pin(submodule(pinned, name), ins, out)
    return Loose(pinned, Trial(pinned, trial.feeds[0]), found.heads, found.refused)


def look_closer(look: Look) -> tuple[Look, Loose]:
    """The same look at the loosened model, in which every projection is a layer that is called."""
    loose = loosened(look.model, look.trial)
    if loose.model is look.model:
        return look, loose
    macs = layer_macs(loose.model, loose.trial.feeds[0])
    return replace(look, model=loose.model, trial=loose.trial, macs=macs), loose
