"""What each layer of a model costs: parameters, and multiply-accumulates a sample.

costs = layer_macs(model, example)       # {"conv1": 442368, ...}; layers that cannot be counted are absent
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from petra_deploy.worker.model import adapter, trial
from petra_deploy.worker.model.trial import Tensors


def layer_macs(model: nn.Module, example: Tensors) -> dict[str, int]:
    """Of the layers that are called in one forward pass of `example`; a layer called twice counts twice."""
    count = len(example[0]) if example[0].dim() else 1
    found: dict[str, int] = {}
    hooks = []
    for name, module in adapter.submodules(model):

        def look(module: nn.Module, args: Any, result: Any, name: str = name) -> None:
            macs = _macs(module, args, result)
            if macs:
                found[name] = found.get(name, 0) + macs // count

        if isinstance(module, _ConvNd | nn.Linear | nn.RNNBase | nn.MultiheadAttention):
            hooks.append(module.register_forward_hook(look))
    try:
        trial.outputs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _macs(module: nn.Module, args: Any, result: Any) -> int:
    if isinstance(module, _ConvNd) and isinstance(result, Tensor):
        taps = module.weight[0, 0].numel()
        if module.transposed:
            return int(args[0].numel() * module.out_channels // module.groups * taps)
        return result.numel() * module.in_channels // module.groups * taps
    if isinstance(module, nn.Linear) and isinstance(result, Tensor):
        return result.numel() * module.in_features
    if isinstance(module, nn.RNNBase) and isinstance(result[0], Tensor):
        steps = result[0].numel() // result[0].shape[-1]
        return steps * sum(w.numel() for n, w in module.named_parameters() if n.startswith("weight"))
    if isinstance(module, nn.MultiheadAttention):
        rows = result[0].numel() // result[0].shape[-1]
        return int(rows * 4 * module.embed_dim**2)
    return 0
