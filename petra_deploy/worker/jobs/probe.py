"""Probe: how much harm shrinking each group alone does, before any recovery, and what work costs here.

A group's damage is the mean squared change of the first floating-point output over that output's
variance, on calibration rows: 0 is none, from about 1 the output says nothing any more. It serves to
rank groups. Each is made smaller by the technique that it belongs to: channels and units are halved, the least
important going first; blocks are passed through.
"""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from petra_deploy.core.job import Probe
from petra_deploy.core.plan import Group, Probed
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs._techniques import Shrinkers
from petra_deploy.worker.model import surgery, trial
from petra_deploy.worker.model.export import example_of
from petra_deploy.worker.model.trial import Tensors
from petra_deploy.worker.quiet import cause, quiet
from petra_deploy.worker.training.device import resolve

SECONDS = 15.0  # for the damages of all groups together
ROWS = 64  # most calibration rows; fewer where a forward pass is slow
BATCH = 32
STEPS = 4  # training steps timed, after one that is not
FEW = 2  # rows of a training step that is nothing but the starts of its kernels; BatchNorm wants two
TRAINING = 15.0  # seconds for them, as far as forward passes tell: batches of slow models are smaller
FORWARD = 3.0  # seconds after which no further forward pass is timed
WORST = 1000.0  # a damage that is larger, or no number


def run(job: Probe, context: Context) -> Probed:
    if not job.workload.has_layers:
        return Probed(sensitivity={}, train_seconds_per_row=None, forward_seconds_per_row=_of_graph(job, context))
    from petra_deploy.worker.workload.opened import open_module

    workload = job.workload
    model = open_module(context.store, workload)
    calibration = Samples.open(context.store.path(workload.calibration.key))
    shrinkers = Shrinkers(model, example_of(calibration, workload.signature))
    with _all_threads():
        size = workload.signature.fixed_batch
        forward = _forward_seconds(model, tensors(calibration.first(size or BATCH), workload.signature))
        groups = tuple(group for group in job.layout.groups if shrinkers.shrinks(group))
        affordable = SECONDS / (len(groups) + 1) / max(forward, 1e-9)
        rows = calibration.first(max(min(ROWS, int(affordable)), 8))
        damages = damage(model, groups, shrinkers, rows, workload.signature, context.log)
        train, starts = None, 0.0
        if workload.train is not None:
            affordable = TRAINING / (STEPS + 1) / (3 * max(forward, 1e-9))  # a step is about three forward passes
            count = size or max(min(BATCH, int(affordable)), 2)
            batch = tensors(Samples.open(context.store.path(workload.train.key)).first(count), workload.signature)
            device = resolve(job.device)
            train = _train_seconds(model, batch, device, context.log)
            if train is not None and device != "cpu" and not size:
                few = _train_seconds(model, tuple(t[:FEW] for t in batch), device, context.log)
                starts = min((few or 0.0) * FEW / count, train)
    return Probed(
        sensitivity=damages, train_seconds_per_row=train, forward_seconds_per_row=forward, train_starts_per_row=starts
    )


def damage(
    model: nn.Module,
    groups: tuple[Group, ...],
    shrinkers: Shrinkers,
    rows: Samples,
    signature: Signature,
    log: Callable[[str], None],
    seconds: float = SECONDS,
) -> dict[str, float]:
    """{"kind/name": damage}. Groups for which the time does not suffice get the median of the others."""
    start = time.monotonic()
    reference = _answers(model, rows, signature)
    found: dict[str, float] = {}
    missed: list[str] = []
    for group in groups:
        name = f"{group.kind}/{group.name}"
        if time.monotonic() - start > seconds:
            missed.append(name)
            continue
        try:
            found[name] = divergence(reference, _answers(shrinkers.without(group), rows, signature))
        except Exception as error:  # the model's own forward; its rank is then unknown
            log(f"{name} could not be probed: {cause(error)}")
            missed.append(name)
            continue
        log(f"{name}: damage {found[name]:.4g}")
    if missed:
        middle = statistics.median(found.values()) if found else 1.0
        log(f"{len(missed)} of {len(groups)} groups not probed; they count as {middle:.4g}: {', '.join(missed[:5])}")
        found |= dict.fromkeys(missed, middle)
    return found


def divergence(reference: Tensor, changed: Tensor) -> float:
    """Mean squared change over the variance of `reference`; both (rows, ...). In [0, 1000]."""
    reference, changed = reference.double(), changed.double()
    variance = (reference - reference.mean(0)).square().mean().item() if len(reference) > 1 else 0.0
    scale = variance or reference.square().mean().item() or 1.0
    value = (changed - reference).square().mean().item() / scale
    return min(value, WORST) if math.isfinite(value) else WORST


def tensors(rows: Samples, signature: Signature) -> Tensors:
    return tuple(torch.from_numpy(rows.inputs[spec.name].copy()) for spec in signature.inputs)


def _answers(model: nn.Module, rows: Samples, signature: Signature) -> Tensor:
    """The first output of floating point, else the first, over all rows."""
    size = signature.fixed_batch or BATCH
    if signature.fixed_batch:
        rows = rows.first(max(len(rows) // size, 1) * size)
    parts: list[Tensor] = []
    for start in range(0, len(rows), size):
        given = trial.outputs(model, tensors(rows.take(slice(start, start + size)), signature))
        parts.append(next((t for t in given if t.is_floating_point()), given[0]))
    return torch.cat(parts)


def _forward_seconds(model: nn.Module, batch: Tensors) -> float:
    """Of the eager model, a row. A pass of seconds is not repeated."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < FORWARD:
        start = time.perf_counter()
        trial.outputs(model, batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / max(len(batch[0]), 1)


def _train_seconds(model: nn.Module, batch: Tensors, device: str, log: Callable[[str], None]) -> float | None:
    """Forward, backward and step of the original, a row; None where no gradient passes."""
    learner = surgery.own(surgery.twin(model, trainable=True)).to(device).train()
    batch = tuple(t.to(device) for t in batch)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-6)
    times = []
    try:
        with quiet(), torch.enable_grad():
            for _ in range(STEPS + 1):
                start = time.perf_counter()
                optimizer.zero_grad()
                loss = sum(t.square().mean() for t in learner(*batch) if t.is_floating_point())
                assert isinstance(loss, Tensor), "no output is of floating point"
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                float(loss)  # waits for an accelerator
                times.append(time.perf_counter() - start)
    except Exception as error:
        log(f"the model cannot be trained: {cause(error)}")
        return None
    return statistics.median(times[1:]) / max(len(batch[0]), 1)


def _of_graph(job: Probe, context: Context) -> float:
    """Seconds a row of the ONNX file as it came."""
    import onnxruntime

    from petra_deploy.worker.workload.opened import open_graph

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        open_graph(context.store, job.workload), options, providers=["CPUExecutionProvider"]
    )
    rows = Samples.open(context.store.path(job.workload.calibration.key)).first(1)
    feeds, _ = next(rows.batches(1))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextlib.contextmanager
def _all_threads() -> Iterator[None]:
    """Every core that this process may use; as before on leaving."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
