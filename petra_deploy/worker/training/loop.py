"""The training loop: AdamW, a short warm-up, then half a cosine down to zero.

    course = Course(epochs=20, lr=3e-3, batch_size=32)
    trained = fit(model, rows, distance, course, seed=7)
    trained.losses                          # mean loss of each epoch

The model is trained in place and comes back on the CPU, in eval mode, with BatchNorm statistics
taken afresh from the training rows. On the CPU the same seed gives the same weights, but for what
the number of threads does to the rounding of sums. Epochs may be a fraction: half an epoch sees
half of the rows. `recovery.py` is what techniques call.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model import masks
from petra_deploy.worker.training.average import Average
from petra_deploy.worker.training.batchnorm import averaging, tracking
from petra_deploy.worker.training.held_out import Held, Rounds
from petra_deploy.worker.training.losses import Distance
from petra_deploy.worker.training.memory import channels_last
from petra_deploy.worker.training.objective import Objective
from petra_deploy.worker.training.samples import Batch, Rows, taking
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
    ema: float = 0.0  # decay, a step, of the average of the weights that is kept; 0: the last weights are
    patience: int = 0  # epochs without a smaller loss on the held-out rows that end the training; 0: all epochs


@dataclass(frozen=True)
class Trained:
    steps: int
    losses: tuple[float, ...] = ()  # mean over each epoch
    held_out: tuple[float, ...] = ()  # the distance on held-out rows after each epoch, where there are any
    best: int | None = None  # the epoch whose weights were kept, from 1; None: the last


@dataclass(frozen=True)
class Material:
    """What a training sees beside its rows, and which of the parameters it moves."""

    mixed: Rows | None = None  # every second batch is of these
    held_out: Rows | None = None  # never trained on: what `patience` watches
    only: Sequence[nn.Parameter] | None = field(default=None)  # None: all parameters


def fit(model: nn.Module, rows: Rows, loss: Distance | Objective, course: Course, *, seed: int,
        log: Callable[[str], None] = lambda line: None, material: Material = Material()) -> Trained:  # fmt: skip
    """Train `model` in place. Raises Problem("diverged") when the loss is no finite number."""
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    size = min(course.batch_size, len(rows))
    per_epoch = max(len(rows) // size, 1)
    steps = max(round(course.epochs * per_epoch), 1 if course.epochs else 0)
    losses: list[float] = []
    generator = np.random.default_rng(seed)
    device = torch.device(course.device)
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        threads = stack.enter_context(chosen(course.device))
        torch.manual_seed(seed)
        trained = _trainable(model, material.only)
        model.to(course.device)
        objective.to(course.device)
        example = rows.take(np.arange(size)).to(course.device).inputs
        last = stack.enter_context(channels_last(model, example, course.device))
        stack.enter_context(objective.watching(model))
        batches = _batches(rows, material.mixed, size, generator, course.device, last)
        model.train()
        optimizer = _optimizer([*trained, *objective.parameters()], course)
        masks.watch(optimizer, model)
        average = Average(trained, course.ema) if course.ema else None
        rounds = Rounds(course.patience, Held(objective.distance, material.held_out, size, course.device))
        for start in range(0, steps, per_epoch):
            part = min(per_epoch, steps - start)
            total = torch.zeros((), device=course.device)
            for step in range(start, start + part):
                _set_rate(optimizer, course.lr * _rate(step, steps))
                with threads.step():
                    total += _step(model, next(batches), objective, optimizer, trained)
                if average is not None:
                    average.update()
            losses.append(_finite(total.item() / part, len(losses), course))
            if _worth_a_line(len(losses), math.ceil(steps / per_epoch)):
                log(f"epoch {len(losses)}: loss {losses[-1]:.4f}")
            with average.in_place() if average is not None else contextlib.nullcontext():
                if rounds.enough(model):
                    break
        if average is not None:
            average.keep()
        rounds.restore(model)
        if steps:
            _refresh(model, batches, min(_STATISTICS // size + 1, per_epoch))
    model.to("cpu").eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    return Trained(min(len(losses) * per_epoch, steps), tuple(losses), rounds.seen, rounds.best)


def _step(
    model: nn.Module, batch: Batch, objective: Objective, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = objective(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(trained, _CLIP)
    optimizer.step()
    return loss.detach()


def _trainable(model: nn.Module, only: Sequence[nn.Parameter] | None) -> list[nn.Parameter]:
    """What is trained; everything else of floating point is left alone."""
    wanted = None if only is None else {id(p) for p in only}
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point() and (wanted is None or id(p) in wanted))
    return [p for p in model.parameters() if p.requires_grad]


def _batches(rows: Rows, mixed: Rows | None, size: int, generator: np.random.Generator, device: str,
             images_last: bool) -> Iterator[Batch]:  # fmt: skip
    """Without end: each round over the rows in a new order; rows that fill no batch sit one round out."""
    if mixed is not None:
        sources = [_batches(part, None, size, generator, device, images_last) for part in (rows, mixed)]
        while True:
            yield from (next(source) for source in sources)
    take = taking(rows, device)
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(order) - size + 1, size):
            yield take(order[start : start + size]).to(device, images_last=images_last)


def _rate(step: int, steps: int) -> float:
    """Share of the full rate: up in a straight line over the warm-up, then half a cosine to zero."""
    warm = max(1, round(_WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _optimizer(trained: list[nn.Parameter], course: Course) -> torch.optim.Optimizer:
    """AdamW with decay for matrices and kernels; none for biases, norms and other vectors.

    One kernel updates all parameters where there is one: on the CPU it costs a seventh of a loop
    over sixty small tensors, which is a tenth of such a network's step. It walks through memory, and goes
    wrong without a word where a weight is a slice of something larger (torch 2.13); then the loop it is.
    """
    dense = all(torch.empty_like(p).stride() == p.stride() for p in trained)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": course.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=course.lr, fused=dense and course.device != "mps")


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
