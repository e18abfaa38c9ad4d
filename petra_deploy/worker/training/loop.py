"""The training loop: AdamW, a short warm-up, then half a cosine down to zero.

    course = Course(epochs=20, lr=3e-3, batch_size=32)
    trained = fit(model, rows, distance, course, seed=7)
    trained.losses                          # mean loss of each epoch

The model is trained in place and comes back on the CPU, in eval mode, with BatchNorm statistics
taken afresh from the training rows. On the CPU the same seed gives the same weights, but for what
the number of threads does to the rounding of sums. Epochs may be a fraction: half an epoch sees
half of the rows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import masks
from petra_deploy.worker.training.batchnorm import averaging, tracking
from petra_deploy.worker.training.losses import Distance
from petra_deploy.worker.training.samples import Batch, Rows
from petra_deploy.worker.training.threads import chosen

_WARM = 0.1  # share of the steps in which the rate rises
_CLIP = 5.0  # largest norm of the gradients
_STATISTICS = 2048  # rows that set BatchNorm's statistics at the end


@dataclass(frozen=True, kw_only=True)
class Course:
    epochs: float
    lr: float
    batch_size: int
    weight_decay: float = 0.01
    device: str = "cpu"


@dataclass(frozen=True)
class Trained:
    steps: int
    losses: tuple[float, ...] = ()  # mean over each epoch


def fit(model: nn.Module, rows: Rows, distance: Distance, course: Course, *, seed: int,
        log: Callable[[str], None] = lambda line: None) -> Trained:  # fmt: skip
    """Train `model` in place. Raises Problem("diverged") when the loss is no finite number."""
    size = min(course.batch_size, len(rows))
    per_epoch = max(len(rows) // size, 1)
    steps = max(round(course.epochs * per_epoch), 1 if course.epochs else 0)
    losses: list[float] = []
    generator = np.random.default_rng(seed)
    cuda = [torch.cuda.current_device()] if course.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda), chosen(course.device) as threads:
        torch.manual_seed(seed)
        model.requires_grad_(True).to(course.device)
        batches = _batches(rows, size, generator, course.device, _images_last(model, rows, size, course.device))
        model.train()
        optimizer = torch.optim.AdamW(_decayed(model, course.weight_decay), lr=course.lr)
        masks.watch(optimizer, model)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for start in range(0, steps, per_epoch):
            part = min(per_epoch, steps - start)
            total = torch.zeros((), device=course.device)
            for _ in range(part):
                with threads.step():
                    total += _step(model, next(batches), distance, optimizer)
                rate.step()
            losses.append(_finite(total.item() / part, len(losses), course))
            if _worth_a_line(len(losses), math.ceil(steps / per_epoch)):
                log(f"epoch {len(losses)}: loss {losses[-1]:.4f}")
        if steps:
            _refresh(model, batches, min(_STATISTICS // size + 1, per_epoch))
        model.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Trained(steps, tuple(losses))


def _step(model: nn.Module, batch: Batch, distance: Distance, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = distance(model(*batch.inputs), batch.teacher, batch.target)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    return loss.detach()


def _batches(rows: Rows, size: int, generator: np.random.Generator, device: str, images_last: bool) -> Iterator[Batch]:
    """Without end: each round over the rows in a new order; rows that fill no batch sit one round out."""
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(order) - size + 1, size):
            yield rows.take(order[start : start + size]).to(device, images_last=images_last)


def _rate(step: int, steps: int) -> float:
    """Share of the full rate: up in a straight line over the warm-up, then half a cosine to zero."""
    warm = max(1, round(_WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _decayed(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels; none for biases, norms and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _images_last(model: nn.Module, rows: Rows, size: int, device: str) -> bool:
    """Bring `model` into the memory layout it trains fastest in, and say whether channels come last.

    2D convolutions gain a third; a model that calls `view` on its features cannot be run so.
    """
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()) or any(p.ndim > 4 for p in model.parameters()):
        return False
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            model(*rows.take(np.arange(size)).to(device, images_last=True).inputs)
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
    return True


def _refresh(model: nn.Module, batches: Iterator[Batch], count: int) -> None:
    """The running statistics lag behind the weights when steps are few; take them afresh."""
    model.eval()
    norms = tracking(model)
    if norms:
        with torch.no_grad(), averaging(norms):
            for _ in range(count):
                model(*next(batches).inputs)


def _finite(loss: float, epoch: int, course: Course) -> float:
    if math.isfinite(loss):
        return loss
    raise Problem("diverged", f"recovery training diverged in epoch {epoch + 1}: the loss is {loss}",
                  f"lower the rate (lr was {course.lr:g})")  # fmt: skip


def _worth_a_line(epoch: int, epochs: int) -> bool:
    """About ten lines a training, the last epoch among them."""
    return epoch == epochs or epoch % max(1, epochs // 10) == 0
