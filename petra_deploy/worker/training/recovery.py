"""Train a shrunken module towards the original's answers: what recover, and schedules of other techniques, call.

module, facts = recovered(module, Recipe(epochs=5, lr=3e-3), tools)
module, facts = recovered(module, Recipe(epochs=5), tools, only=prompts)        # nothing else moves
"""

import copy
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from petra_deploy.core.data import Data
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Tools
from petra_deploy.worker.model import masks
from petra_deploy.worker.training import lora, regularize
from petra_deploy.worker.training.balance import Balance
from petra_deploy.worker.training.dropout import eased, has_dropout
from petra_deploy.worker.training.held_out import apart
from petra_deploy.worker.training.loop import Course, Material, fit
from petra_deploy.worker.training.losses import OutputDistance, Weights, distance_for
from petra_deploy.worker.training.mixing import answers, mixed
from petra_deploy.worker.training.objective import Objective, Regularizer
from petra_deploy.worker.training.relations import Relations, shared
from petra_deploy.worker.training.samples import Rows, batch_size

HELD_OUT = 0.1  # share of the training rows that early stopping watches


@dataclass(frozen=True, kw_only=True)
class Recipe(Data):
    epochs: Annotated[float, Ge(0)] = 20.0  # a fraction sees that share of the rows
    lr: Annotated[float, Gt(0), Le(1)] = 5e-3  # the highest rate, after the warm-up
    batch_size: Annotated[int, Ge(2)] | None = None  # None: by the number of rows, 16 to 128
    weight_decay: Annotated[float, Ge(0)] = 0.01
    distil: Annotated[float, Ge(0)] = 1.0  # weight of the distance from the original
    labels: Annotated[float, Ge(0)] = 0.5  # weight of the distance from the labels
    temperature: Annotated[float, Gt(0)] = 2.0
    features: Annotated[float, Ge(0)] = 0.0  # weight of how rows are alike in layers; the original runs in each step
    attention: Annotated[float, Ge(0)] = 0.0  # weight of how positions are alike in layers; likewise
    norm: Annotated[float, Ge(0)] = 0.0  # weight of the mean of |w| or w^2
    norm_power: Literal[1, 2] = 2
    hoyer: Annotated[float, Ge(0)] = 0.0  # weight of the Hoyer-square density of each tensor
    orthogonal: Annotated[float, Ge(0)] = 0.0  # weight of how far low-rank factors are from right angles
    balance: Literal["fixed", "adaptive"] = "fixed"  # adaptive: terms are weighed anew in each step
    lora_rank: Annotated[int, Ge(0)] = 0  # train changes of this rank, merged in the end; 0: the weights
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0  # decay, a step, of the average of the weights that is kept
    patience: Annotated[int, Ge(0)] = 0  # epochs without gain on a held-out tenth that end the training
    augment: Annotated[int, Ge(0)] = 0  # copies of the rows, mixed in pairs, that the original answers too


@dataclass(frozen=True)
class Recovery:
    losses: tuple[float, ...]  # mean over each epoch
    facts: dict[str, object]  # for a technique's own


def recovered(
    model: nn.Module, recipe: Recipe, tools: Tools, *, only: Sequence[str] | None = None
) -> tuple[nn.Module, dict[str, object]]:
    """A trained copy of `model`, and what there is to say of the training. Raises Problem as `train` does."""
    model = copy.deepcopy(model)
    return model, train(model, recipe, tools, only=only).facts


def train(model: nn.Module, recipe: Recipe, tools: Tools, *, only: Sequence[str] | None = None) -> Recovery:
    """Train `model` in place towards the original's answers and the labels; it ends on the CPU, in eval mode.

    `only`: names of the parameters that are trained (as named_parameters() gives them), all others
    stay. Raises Problem: "unsupported" where there is nothing to train on or a term finds nothing to act on,
    "diverged" where the loss is no finite number, "mismatch" where the outputs are not those of the original.
    """
    if tools.train is None or not len(tools.train):
        raise Problem("unsupported", "recovery training needs training rows, and there are none",
                      "give --data with at least a few hundred rows, or leave the step out")  # fmt: skip
    start = time.monotonic()
    taught = tools.teacher_outputs()
    facts: dict[str, object] = {}
    try:
        rows = Rows.of(tools.train, [spec.name for spec in tools.signature.inputs], taught)
        distance = distance_for(taught, tools.train.target, tools.metric,
                                Weights(recipe.distil, recipe.labels, recipe.temperature))  # fmt: skip
        size = batch_size(tools.signature, recipe.batch_size or fitting(len(rows)))
        learned, held = _apart(rows, size, recipe, tools)
        more = None
        if recipe.augment:
            more = _mixtures(learned, recipe, size, tools)
            facts["mixed_rows"] = len(more)
    except ValueError as error:
        raise Problem("unsupported", f"recovery training: {error}") from error
    objective = _objective(model, recipe, tools, distance, rows, facts)
    course = Course(
        epochs=recipe.epochs * tools.epochs_share, lr=recipe.lr, batch_size=size, weight_decay=recipe.weight_decay,
        device=tools.device, ema=recipe.ema, patience=recipe.patience,
    )  # fmt: skip
    named = dict(model.named_parameters())
    chosen = None if only is None else tuple(named[name] for name in only)
    adapted = lora.added(model, recipe.lora_rank, tools.seed) if recipe.lora_rank else nullcontext()
    with adapted as adapters, _dropping(model, tools, facts):
        if adapters is not None:
            chosen, facts["lora_weights"] = adapters.trained, adapters.weights
        material = Material(mixed=more, held_out=held, only=chosen)
        trained = fit(model, learned, objective, course, seed=tools.seed, log=tools.log, material=material)
    masks.hold(model)  # merged changes fill zeros
    if objective.balance is not None:
        facts["weights"] = {name: float(f"{value:.4g}") for name, value in objective.balance.weights().items()}
    if trained.best is not None:
        facts |= {"best_epoch": trained.best, "held_out": [float(f"{loss:.4g}") for loss in trained.held_out]}
    told = {
        "epochs": course.epochs,
        "steps": trained.steps,
        "losses": [float(f"{loss:.4g}") for loss in trained.losses],
        **facts,
        "seconds": round(time.monotonic() - start, 2),
    }
    return Recovery(trained.losses, told)


def _dropping(model: nn.Module, tools: Tools, facts: dict[str, object]) -> AbstractContextManager[object]:
    """Dropout at the rate that fits what is left of the original."""
    if not has_dropout(model):
        return nullcontext()
    left, whole = (sum(p.numel() for p in each.parameters()) for each in (model, tools.teacher()))
    share = left / max(whole, 1)
    if share >= 1.0:
        return nullcontext()
    facts["dropout_times"] = float(f"{math.sqrt(share):.3g}")
    return eased(model, share)


def fitting(rows: int) -> int:
    """The batch size, a power of two, that leaves at least 64 steps an epoch; 16 to 128.

    Few rows need small batches: a thousand rows in sixteens are back to the original's accuracy
    in half of the epochs that they need in thirty-twos, and an epoch takes as long.
    """
    return min(max(16, 1 << int(math.log2(max(rows / 64, 1)))), 128)


def _mixtures(rows: Rows, recipe: Recipe, size: int, tools: Tools) -> Rows:
    """Mixtures of `rows`. They are the same for all candidates, so the original answers them once a run."""
    name = f"mixtures: {recipe.augment} copies of {len(rows)} rows, seed {tools.seed}"
    return mixed(
        rows,
        lambda inputs: tools.kept(name, lambda: answers(tools.teacher(), inputs, size=size, device=tools.device)),
        copies=recipe.augment,
        seed=tools.seed,
    )


def _apart(rows: Rows, size: int, recipe: Recipe, tools: Tools) -> tuple[Rows, Rows | None]:
    """(rows to learn from, rows held out); of a model with a fixed batch size, whole batches are held out."""
    if not recipe.patience:
        return rows, None
    least = 1 if tools.signature.dynamic_batch else size
    if len(rows) < 2 * least:
        raise ValueError(f"{len(rows)} rows are too few to hold a tenth of them out (patience must be 0)")
    share = max(round(HELD_OUT * len(rows) / least), 1) * least / len(rows)
    return apart(rows, share, tools.seed)


def _objective(
    model: nn.Module, recipe: Recipe, tools: Tools, distance: OutputDistance, rows: Rows, facts: dict[str, object]
) -> Objective:
    relations = None
    if recipe.features or recipe.attention:
        relations = _relations(model, recipe, tools, rows, facts)
    regularizers: dict[str, Regularizer] = {}
    if recipe.norm:
        regularizers["norm"] = lambda m: recipe.norm * regularize.norm(regularize.matrices(m), recipe.norm_power)
    if recipe.hoyer:
        regularizers["hoyer"] = lambda m: recipe.hoyer * regularize.hoyer(regularize.matrices(m))
    if recipe.orthogonal:
        if not (pairs := regularize.factors(model)):
            raise Problem("unsupported", "orthogonal: the model has no low-rank factors", "set it to 0")
        facts["factor_pairs"] = len(pairs)
        regularizers["orthogonal"] = lambda m: recipe.orthogonal * regularize.orthogonal(regularize.factors(m))
    given = [name for name, weight in (("original", recipe.distil), ("labels", recipe.labels)) if weight]
    if rows.target is None or not distance.outputs[0].labelled:
        given = given[:1] if recipe.distil else []
    names = [*given, *(relations.names if relations else ()), *regularizers]
    balance = Balance(names) if recipe.balance == "adaptive" else None
    return Objective(distance, relations, regularizers, balance)


def _relations(model: nn.Module, recipe: Recipe, tools: Tools, rows: Rows, facts: dict[str, object]) -> Relations:
    teacher = tools.teacher()
    example: Sequence[Tensor] = rows.take(torch.arange(batch_size(tools.signature, 2)).numpy() % len(rows)).inputs
    layers = shared(model, teacher, example)
    if not layers:
        raise Problem("unsupported", "features, attention: no layer of the model has the name of one of the original's",
                      "set both to 0")  # fmt: skip
    if recipe.attention and all(layer.form == "rows" for layer in layers):
        raise Problem("unsupported", "attention: no layer's output has positions that both models share", "set it to 0")
    facts["layers"] = [layer.name for layer in layers]
    return Relations(teacher, layers, recipe.features, recipe.attention)
