"""Set small weights to zero: two of every four for GPUs that skip them, or the smallest of each layer.

"2:4": of four weights that follow one another along a layer's inputs the two of larger magnitude stay. Sparse
Tensor Cores (sm80 and later) then do half of the multiplications; TensorRT is let to use them on such targets
(its setting `sparse`). "unstructured": of each layer the share `sparsity` of smallest magnitude. Recovery
training keeps the zeros (worker/model/masks.py), and so does symmetric quantization. Sources: Mishra et al.,
arXiv 2104.08378; Han et al., arXiv 1506.02626.

    Step(technique="sparsify", options={"pattern": "2:4", "share": 1.0})
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.model import adapter, masks, surgery

PHASE = Phase.SHRINK
ACTS_ON: ActsOn = "module"
OFF = (
    "processors compute zeros like other numbers (no gain at 95% zeros in docs/measurements.md), "
    "and what 2:4 gains on a GPU has not been measured here"
)
_OF = 4  # weights in a group of the pattern "2:4"
WEIGHTED = ("Linear", "NonDynamicallyQuantizableLinear", "Conv1d", "Conv2d", "Conv3d", "MultiheadAttention")


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    pattern: Literal["2:4", "unstructured"] = "2:4"
    sparsity: Annotated[float, Gt(0), Lt(1)] = 0.5  # of "unstructured": the share of zeros in each layer
    share: Annotated[float, Ge(0), Le(1)] = 1.0  # of the layers, those with most weights first


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.device == "cuda" and "2:4" not in target.sparsity:
        return (f"{target.name} does not skip zeros",)
    return () if any(name in layout.operators for name in WEIGHTED) else ("the model has no linear or conv layer",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    share = {"share": Knob.real(0.0, 1.0, strength=True)}
    return share if target.device == "cuda" else {**share, "sparsity": Knob.real(0.3, 0.95)}


def fixed(layout: Layout, target: Target) -> dict[str, object]:
    return {"pattern": "2:4" if target.device == "cuda" else "unstructured"}


def apply(model: nn.Module, options: Options, tools: Tools) -> Applied:
    """Return a copy of `model` with zeros in its larger layers, which they keep.

    Raises Problem("unsupported") where no layer can have them.
    """
    sparse = surgery.own(surgery.twin(model))
    found = sorted(_candidates(sparse, options.pattern), key=lambda f: -f[0].get_parameter(f[1]).numel())
    if not found:
        raise Problem("unsupported", "no layer can be made sparse: there is none whose weights are its own"
                      + (" and whose inputs are a multiple of four" if options.pattern == "2:4" else ""))  # fmt: skip
    layers: dict[str, list[int]] = {}
    for layer, name, path in found[: round(options.share * len(found))]:
        weight = layer.get_parameter(name).detach()
        kept = two_of_four(weight) if options.pattern == "2:4" else largest(weight, 1 - options.sparsity)
        masks.put(layer, name, kept)
        layers[path] = [kept.numel(), int((~kept).sum())]
    return Applied(sparse, facts={"pattern": options.pattern, "layers": layers})


def two_of_four(weight: Tensor) -> Tensor:
    """A bool mask of `weight`'s shape, (outputs, inputs, ...): True for the two largest of each four inputs."""
    inputs_last = weight.abs().movedim(1, -1)
    groups = inputs_last.reshape(*inputs_last.shape[:-1], -1, _OF)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2, -1).indices, True)
    return kept.flatten(-2).movedim(-1, 1).contiguous()


def largest(weight: Tensor, share: float) -> Tensor:
    """A bool mask of `weight`'s shape: True for that share of its entries, those of largest magnitude."""
    kept = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    kept[weight.abs().flatten().topk(round(share * weight.numel())).indices] = True
    return kept.view(weight.shape)


def _candidates(model: nn.Module, pattern: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(layer, name of its weight, path): weights that are the layer's own and no other's."""
    owners = Counter(id(p) for _, layer in adapter.submodules(model) for p in layer.parameters(recurse=False))
    inner = ("", getattr(model, "inner", model))
    for path, layer in (inner, *adapter.submodules(model)):
        name = "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"
        if not isinstance(layer, nn.Linear | _ConvNd | nn.MultiheadAttention):
            continue
        if isinstance(layer, _ConvNd) and (layer.transposed or layer.groups > 1):
            continue
        weight = layer._parameters.get(name)  # None where it is computed
        if weight is None or owners[id(weight)] > 1 or not weight.is_floating_point():
            continue
        if pattern == "unstructured" or weight.shape[1] % _OF == 0:
            yield layer, name, path
