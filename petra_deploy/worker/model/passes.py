"""Forward passes over calibration rows, and what layers are given and give in them.

for batch in batches(tools.calibration, tools.signature):
    with watching(model, ["fc"]) as seen:
        trial.outputs(model, batch)
    seen["fc"]                             # [(inputs, output), ...], one a call
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature
from petra_deploy.worker.model import adapter
from petra_deploy.worker.model.trial import Tensors

ROWS = 256
BATCH = 32
Seen = dict[str, list[tuple[Any, Any]]]  # layer -> ((args, kwargs), result) of each call


def batches(samples: Samples, signature: Signature, rows: int = ROWS) -> Iterator[Tensors]:
    """The first `rows` rows as tensors in the signature's order; a fixed batch size is kept to."""
    fixed = signature.fixed_batch
    size = fixed or BATCH
    for feeds, _ in samples.first(rows).batches(size):
        if fixed is None or len(next(iter(feeds.values()))) == size:
            yield tuple(torch.from_numpy(feeds[spec.name].copy()) for spec in signature.inputs)


@contextlib.contextmanager
def watching(model: nn.Module, names: Iterable[str]) -> Iterator[Seen]:
    """What the named layers are called with and give, while inside."""
    seen: Seen = {}
    hooks = []
    for name in names:

        def look(_: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(((args, kwargs), result))

        hooks.append(adapter.submodule(model, name).register_forward_hook(look, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
