"""Run a changed copy of a model to see whether the change is sound; nothing is believed untried.

    trial = Trial(model, example)
    trial.breaks(changed)        # None, or why `changed` cannot stand in for `model`
    trial.differs(lambda copy: reorder(copy, group, order))     # None where the function is the same

Two batch sizes are tried: a model whose code has a size written into it often survives one. Where a forward pass
takes long, shapes are first asked of torch's fake tensors, which compute nothing; what fails there runs for real.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from petra_deploy.worker.model.surgery import twin
from petra_deploy.worker.quiet import cause, quiet

Tensors = tuple[Tensor, ...]
BATCHES = (2, 3)
SLOW = 0.4  # seconds of this thread for a forward pass; one of fake tensors takes half of that, however large the model


def rows(example: Tensors, count: int) -> Tensors:
    """The first `count` rows of each tensor, repeated from the start where there are fewer."""
    index = torch.arange(count) % min((len(t) for t in example if t.dim()), default=1)
    return tuple(t[index] if t.dim() else t for t in example)


def outputs(model: nn.Module, example: Tensors) -> Tensors:
    """The outputs as they are in eval mode, every layer called by its own forward."""
    with torch.no_grad(), _unfused(), quiet():
        return tuple(model(*example))


def alone(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one part of a model answers to a recorded call, in the same way."""
    with torch.no_grad(), _unfused(), quiet():
        return module(*args, **kwargs)


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """torch's fused encoder layers never call their parts, and zero what is masked; export does neither."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def imagined(model: nn.Module, example: Tensors) -> tuple[tuple[int, ...], ...]:
    """The outputs' shapes, without computing anything; () where that needs numbers, or fails.

    What a forward pass leaves in its modules (a table of positions) stays in a copy.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        copied = twin(model)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return shapes(outputs(copied, tuple(mode.from_tensor(t) for t in example)))
    except Exception:  # values that its code reads, or the very fault that is looked for: the real pass tells
        return ()


def shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in tensors)


class Trial:
    """What `model` answers to `example`, for changed copies to be held against.

    `feeds` are the inputs used: of two and of three rows, or the example as it is where the model
    takes no other batch size.
    """

    def __init__(self, model: nn.Module, example: Tensors) -> None:
        self.model = model
        self.slow = False
        self.known: dict[str, Any] = {}  # what was found out of the model by trying, for whoever asks again
        self.feeds: list[Tensors] = []
        self._shapes: list[tuple[tuple[int, ...], ...]] = []
        self._exact: tuple[nn.Module, Tensors, Tensors, float] | None = None
        for count in BATCHES:
            try:
                self._add(rows(example, count))
            except Exception:  # a fixed batch size: the model's own forward says no
                continue
        if not self.feeds:
            self._add(example)

    def _add(self, feeds: Tensors) -> None:
        start = time.thread_time()
        found = outputs(self.model, feeds)
        self.slow = self.slow or time.thread_time() - start > SLOW
        self.feeds.append(feeds)
        self._shapes.append(shapes(found))

    def breaks(self, changed: nn.Module) -> str | None:
        for feeds, wanted in zip(self.feeds, self._shapes, strict=True):
            try:
                found = (self.slow and imagined(changed, feeds)) or shapes(outputs(changed, feeds))
            except Exception as error:  # a user's forward may raise anything
                return f"the forward pass then fails ({cause(error)})"
            if found != wanted:
                return "the model's outputs then have another shape"
        return None

    def differs(self, change: Callable[[nn.Module], None]) -> str | None:
        """Why the outputs are not the same after `change` (made to a copy), or None."""
        exact, feeds, reference, tolerance = self._precisely()
        changed = twin(exact)
        try:
            change(changed)
            found = outputs(changed, feeds)
        except Exception as error:
            return f"the forward pass then fails ({cause(error)})"
        return None if same(reference, found, tolerance) else "the outputs then differ"

    def _precisely(self) -> tuple[nn.Module, Tensors, Tensors, float]:
        """In float64 where the model permits: a mere reordering of sums then costs 1e-14, so no real change hides."""
        if self._exact is None:
            wide = copy.deepcopy(self.model).double().eval()
            feeds = tuple(t.double() if t.is_floating_point() else t for t in self.feeds[0])
            try:
                self._exact = wide, feeds, outputs(wide, feeds), 1e-9
            except Exception:  # dtypes are written into its forward
                reference = outputs(self.model, self.feeds[0])
                self._exact = self.model, self.feeds[0], reference, 1e-4
        return self._exact


def same(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float) -> bool:
    """Whether all shapes agree, and all values within `tolerance` of the largest."""
    if shapes(first) != shapes(second):
        return False
    for a, b in zip(first, second, strict=True):
        scale = float(a.abs().max()) if a.numel() else 0.0
        if not torch.allclose(a, b, rtol=0, atol=tolerance * scale + 1e-30, equal_nan=True):
            return False
    return True
