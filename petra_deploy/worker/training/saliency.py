"""Saliency: how much the loss would rise without a weight, estimated from gradients on data.

    weights = saliency(model, "taylor", tools)      # a copy of `model` whose weights are their own saliency
    channel_scores(weights, group, "taylor", seed)

| importance | of weight w with gradient g                     | source                                     |
|------------|-------------------------------------------------|--------------------------------------------|
| taylor     | absolute value of w times the mean of g         | Molchanov et al., CVPR 2019, eq. 8         |
| hessian    | w^2 times the mean of g^2 over single rows / 2  | LeCun, Denker and Solla, Optimal Brain     |
|            | (the diagonal of the Fisher information)        | Damage, 1989; Fisher: arXiv 1905.12558     |

The loss is that of recovery training against the labels. Outputs without labels are judged against
answers drawn from what the model itself holds likely: against its plain answers, the best that it can
do, there is no gradient.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Tools
from petra_deploy.core.samples import Samples
from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.importance import FROM_DATA, Importance
from petra_deploy.worker.quiet import cause, quiet
from petra_deploy.worker.training.losses import Output, describe, drawn, from_labels, from_original
from petra_deploy.worker.training.samples import Batch, Rows, batch_size

ROWS = {"taylor": 128, "hessian": 64}  # used at most
BATCH = {"taylor": 32, "hessian": 1}


def saliency(model: nn.Module, importance: Importance, tools: Tools) -> nn.Module:
    """`model` itself for an importance that needs no data; it stays as it is.

    Raises Problem: "unsupported" where no gradient passes, "diverged" where one is no finite number.
    """
    if importance not in FROM_DATA:
        return model
    samples = tools.train if tools.train is not None and len(tools.train) else tools.calibration
    size = batch_size(tools.signature, BATCH[importance])
    samples = _filled(samples.first(ROWS[importance]), size)
    judged = surgery.twin(model, trainable=True).to(tools.device)
    try:
        with quiet(), torch.enable_grad(), _recurrent_gradients(judged):
            means = _means(judged, samples, size, tools, squared=importance == "hessian")
    except Problem:
        raise
    except Exception as error:  # the user's forward, or an operation without a gradient
        raise Problem("unsupported", f"importance {importance!r}: no gradient passes ({cause(error)})",
                      "choose an importance that needs none, such as magnitude_l2") from error  # fmt: skip
    for weight, mean in means.items():
        if not mean.isfinite().all():
            raise Problem("diverged", f"importance {importance!r}: a gradient is no finite number",
                          "choose an importance that needs none, such as magnitude_l2")  # fmt: skip
        values = weight.detach()
        weight.data = (values * mean).abs() if importance == "taylor" else values.square() * mean / 2
    return judged.cpu()


def _recurrent_gradients(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """In eval mode cuDNN's recurrent layers have no backward pass; PyTorch's own kernels have one."""
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
    return flags if recurrent and torch.cuda.is_available() else contextlib.nullcontext()


def _means(model: nn.Module, samples: Samples, size: int, tools: Tools, *, squared: bool) -> dict[nn.Parameter, Tensor]:
    """Of each weight, the mean over batches of its gradient, or of that squared; 0 where it has none."""
    rows, outputs = _judged(model, samples, size, tools)
    sums = {p: torch.zeros_like(p) for p in model.parameters() if p.is_floating_point()}
    count = len(rows) // size
    for index in range(count):
        batch = rows.take(np.arange(index * size, (index + 1) * size)).to(tools.device)
        gradients = torch.autograd.grad(_loss(model, batch, outputs), list(sums), allow_unused=True)
        for weight, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                sums[weight] += gradient.square() if squared else gradient
    return {weight: total / count for weight, total in sums.items()}


def _judged(model: nn.Module, samples: Samples, size: int, tools: Tools) -> tuple[Rows, tuple[Output, ...]]:
    """The rows with drawn answers in the teacher's place, and what the model's outputs are."""
    names = [spec.name for spec in tools.signature.inputs]
    with torch.no_grad():
        answers = [
            [o.cpu() for o in model(*(torch.from_numpy(feeds[name]).to(tools.device) for name in names))]
            for feeds, _ in samples.batches(size)
        ]
    said = [torch.cat(parts) for parts in zip(*answers, strict=True)]
    outputs = tuple(
        describe(values.numpy(), samples.target if index == 0 else None, tools.metric)
        for index, values in enumerate(said)
    )
    if all(output.sort == "whole" for output in outputs):
        raise Problem("unsupported", "every output is of whole numbers, through which no gradient passes",
                      "choose an importance that needs no gradient, such as magnitude_l2")  # fmt: skip
    generator = torch.Generator().manual_seed(tools.seed)
    teacher = [
        (values if output.sort == "whole" else drawn(output, values, generator)).numpy()
        for output, values in zip(outputs, said, strict=True)
    ]
    return Rows.of(samples, names, teacher), outputs


def _loss(model: nn.Module, batch: Batch, outputs: Sequence[Output]) -> Tensor:
    return torch.stack(list(_terms(model(*batch.inputs), batch, outputs))).mean()


def _terms(ours: Sequence[Tensor], batch: Batch, outputs: Sequence[Output]) -> Iterator[Tensor]:
    for index, (output, said, drawn_answer) in enumerate(zip(outputs, ours, batch.teacher, strict=True)):
        if index == 0 and output.labelled and batch.target is not None:
            yield from_labels(output, said, batch.target)
        elif output.sort != "whole":
            yield from_original(output, said, drawn_answer.to(said.dtype), 1.0)


def _filled(samples: Samples, size: int) -> Samples:
    """Whole batches only; too few rows for one are repeated."""
    rows = len(samples)
    index = np.arange(rows // size * size) if rows >= size else np.resize(np.arange(rows), size)
    return samples.take(index)
