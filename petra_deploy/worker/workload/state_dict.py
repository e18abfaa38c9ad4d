"""Weights: find them in a file, and put them into the module that a factory makes.

    weights, notes = read_weights(path, sniffed)
    notes += fit(module, weights, "model.pt")

Training loops save weights in many wrappings: bare, inside a checkpoint dict, with the prefixes
of DataParallel, torch.compile or Lightning. All are unwrapped; what then does not match is said.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.recorded import Recorded, read
from petra_deploy.worker.workload.sniff import Sniffed

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "ema",
    "model_ema",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
Weights = dict[str, torch.Tensor]


def read_weights(path: Path, sniffed: Sniffed, hint: str) -> tuple[Weights, tuple[str, ...]]:
    """The tensors of a state_dict, checkpoint or recorded module, by name; no code runs."""
    if sniffed.kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), ()
        except (SafetensorError, OSError, ValueError) as error:
            raise Problem("input", f"{path.name} is damaged: {error}", "save or download it again") from None
    if sniffed.scan is None:
        raise Problem("input", f"{path.name} holds no weights", hint)
    return weights_in(read(path, sniffed.scan, hint), path.name)


def weights_in(data: Any, name: str) -> tuple[Weights, tuple[str, ...]]:
    if isinstance(data, Recorded):
        return _of_module(data, ""), (f"only the weights of {name} were read; the architecture is from --model",)
    if isinstance(data, Mapping):
        tensors = {str(key): value for key, value in data.items() if isinstance(value, torch.Tensor)}
        for key in _WRAPPERS:
            inner = data.get(key)
            if isinstance(inner, Recorded) or (isinstance(inner, Mapping) and not tensors):
                weights, notes = weights_in(inner, name)
                if weights:
                    return weights, (f"weights were read from {key!r} in {name}", *notes)
        if tensors:
            return tensors, ()
    what = type(data).__name__ if not isinstance(data, Mapping) else "dict without tensors"
    raise Problem(
        "input", f"{name} holds a {what}, not a model's weights", "save them with torch.save(model.state_dict(), ...)"
    )


def fit(module: torch.nn.Module, weights: Weights, name: str) -> tuple[str, ...]:
    """Load `weights` into `module` in place, every name matching; returns notes."""
    wanted = module.state_dict()
    weights, notes = _unprefixed(weights, set(wanted))
    missing = [key for key in wanted if key not in weights]
    extra = [key for key in weights if key not in wanted]
    if missing or extra:
        said = [
            f"{len(keys)} {what} ({_some(keys)})" for keys, what in ((missing, "missing"), (extra, "unknown")) if keys
        ]
        raise Problem(
            "input", f"the weights in {name} do not fit the module that --model makes: {' and '.join(said)}",
            "make the module with the same arguments as in training",
        )  # fmt: skip
    for key, value in weights.items():
        if tuple(value.shape) != tuple(wanted[key].shape):
            raise Problem(
                "input",
                f"the weights in {name} do not fit: {key} is {list(value.shape)} in the file and "
                f"{list(wanted[key].shape)} in the module",
                "make the module with the same arguments as in training",
            )
    try:
        module.load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise Problem("input", f"the weights in {name} do not fit: {str(error).splitlines()[0]}") from None
    return notes


def _unprefixed(weights: Weights, wanted: set[str]) -> tuple[Weights, tuple[str, ...]]:
    """Without the prefix that a wrapper put before every name, where that makes all names fit."""
    notes: tuple[str, ...] = ()
    for _ in range(2):  # DataParallel around a compiled module has two
        if set(weights) & wanted:
            break
        for prefix in _PREFIXES:
            inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            if inner and len(inner) == len(weights):
                weights, notes = inner, (*notes, f"the prefix {prefix!r} was taken off the names of the weights")
                break
            if inner and wanted <= set(inner):  # Lightning keeps the loss's weights beside the model's
                weights, notes = inner, (*notes, f"only weights under {prefix!r} were used")
                break
    return weights, notes


def _of_module(module: Recorded, prefix: str, depth: int = 0) -> Weights:
    """The state_dict of a module that was only written down."""
    state = module.state if isinstance(module.state, dict) else {}
    if depth > 100:
        raise Problem("input", "the pickled module is nested too deeply", "save its state_dict instead")
    temporary = state.get("_non_persistent_buffers_set") or ()
    found: Weights = {}
    for key in ("_parameters", "_buffers"):
        for name, value in (state.get(key) or {}).items():
            if isinstance(value, torch.Tensor) and name not in temporary:
                found[f"{prefix}{name}"] = value.detach()
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, Recorded):
            found |= _of_module(child, f"{prefix}{name}.", depth + 1)
    return found


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
