"""Remove layers inside nn.LSTM, nn.GRU and nn.RNN: of a stack of two, one is left, and half of the time.

The layers of one such module run one after the other over all steps, so each costs what the first does. The first
stays, since it reads the input; what the last one gave is then given by the last that is left.
Source: measured here (docs/measurements.md); compare LayerDrop, arXiv 1909.11556.

    Step(technique="drop_rnn_layers", options={"layers": ["lstm:1"]})        # "lstm:0" is the first
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn, Group
from petra_deploy.worker.model import adapter, surgery
from petra_deploy.worker.model.blocks import gone
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.layout import Found, Look
from petra_deploy.worker.model.trial import Tensors, Trial

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
KIND = "layer"
STACKED = (nn.LSTM, nn.GRU, nn.RNN)


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    layers: tuple[str, ...]  # "module:number", numbered from 0 as in the weights' names


def groups(look: Look) -> Found:
    """The layers that the model runs without, one at a time and all together; a group's macs are its own."""
    found: list[Group] = []
    refused: dict[str, str] = {}
    for name, module in adapter.submodules(look.model):
        if not isinstance(module, STACKED) or module.num_layers < 2:
            continue
        names = [f"{name}:{number}" for number in range(1, module.num_layers)]
        if reason := _breaks(look.model, names, look.trial):
            refused[name] = reason
            continue
        total = sum(p.numel() for p in module.parameters())
        for number, each in enumerate(names, 1):
            own = sum(p.numel() for key, p in module.named_parameters() if _number(key) == number)
            macs = look.macs.get(name, 0) * own // max(total, 1)
            found.append(Group(name=each, kind=KIND, width=1, parameters=own, macs=macs))
    if found and (reason := _breaks(look.model, [g.name for g in found], look.trial)):
        return Found((), refused | {g.name: f"without any of the upper layers {reason}" for g in found})
    return Found(tuple(found), refused)


def shrinker(model: nn.Module, example: Tensors) -> Callable[[Group], nn.Module]:
    """What gives a copy of `model` without one layer."""
    return lambda group: _without(model, [group.name])


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if layout.of_kind(KIND):
        return ()
    return (*layout.refusals(KIND)[:1],) or ("the model has no recurrent module of several layers",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"layers": Knob.subset(KIND, ladder=(0.0, 0.5, 1.0, 1.0))}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` without the named layers.

    Raises Problem("unsupported") for a name that is no upper layer of a recurrent module, and where the model does not
    run without them, or gives other shapes. Layers of a module that is gone are passed over.
    """
    wanted = [name for name in options.layers if not gone(model, _parts(name)[0])]
    small = _without(model, wanted)
    if reason := Trial(model, example_of(tools.calibration, tools.signature)).breaks(small):
        raise Problem("unsupported", f"without {', '.join(wanted)} {reason}")
    small = surgery.own(small)
    return Applied(small, facts={"dropped": wanted, "parameters": [surgery.size(model), surgery.size(small)]})


def _breaks(model: nn.Module, names: Sequence[str], trial: Trial) -> str | None:
    return trial.breaks(_without(model, names))


def _without(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A twin of `model` whose recurrent modules lack the named layers."""
    small = surgery.twin(model)
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        module, number = _parts(name)
        numbers[module].add(number)
    known = dict(adapter.submodules(small))
    for name, dropped in numbers.items():
        layer = known.get(name)
        if not isinstance(layer, STACKED):
            raise Problem("unsupported", f"{name!r} is no recurrent module of this model")
        if not dropped <= set(range(1, layer.num_layers)):
            raise Problem(
                "unsupported", f"{name!r} has the upper layers 1 to {layer.num_layers - 1}, not {max(dropped)}"
            )
        adapter.replace(small, name, _shallower(layer, [n for n in range(layer.num_layers) if n not in dropped]))
    return small


def _shallower(layer: nn.LSTM | nn.GRU | nn.RNN, kept: Sequence[int]) -> nn.Module:
    """A module like `layer` of the `kept` layers alone, with their very weights."""
    if computed := [name for name in layer._flat_weights_names if not surgery.is_plain(layer, name)]:
        raise Problem("unsupported", f"its {computed[0]} is computed (a parametrization or weight norm)")
    more: dict[str, Any] = {}
    if isinstance(layer, nn.RNN):
        more["nonlinearity"] = layer.nonlinearity
    elif isinstance(layer, nn.LSTM):
        more["proj_size"] = layer.proj_size
    kind: Any = type(layer)
    made: nn.RNNBase = kind(
        layer.input_size, layer.hidden_size, len(kept), bias=layer.bias, batch_first=layer.batch_first,
        dropout=layer.dropout if len(kept) > 1 else 0.0, bidirectional=layer.bidirectional, device="meta",
        dtype=next(layer.parameters()).dtype, **more,
    )  # fmt: skip
    for name in list(made._flat_weights_names):
        new = _number(name)
        setattr(made, name, getattr(layer, name.replace(f"_l{new}", f"_l{kept[new]}")))
    return made.train(layer.training)


def _parts(name: str) -> tuple[str, int]:
    module, _, number = name.rpartition(":")
    if not module or not number.isdigit():
        raise Problem("unsupported", f"{name!r} is no layer of a recurrent module", 'write it like "lstm:1"')
    return module, int(number)


def _number(weight: str) -> int:
    """1 of "weight_ih_l1_reverse"."""
    return int(weight.removesuffix("_reverse").rpartition("_l")[2])
