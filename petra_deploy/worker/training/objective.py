"""All that a training step minimises: the distance of the outputs, relations of layers, regularizers.

    objective = Objective(distance, relations=Relations(...), regularizers=regularizers, balance=Balance())
    with objective.watching(model):         # hooks on the layers that relations look at
        objective(model, batch).backward()

Each term comes with its weight in it. A `Balance` weighs the terms against each other anew in
every step; without one their sum is taken.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from petra_deploy.worker.training.balance import Balance
from petra_deploy.worker.training.losses import Distance, OutputDistance
from petra_deploy.worker.training.relations import Relations
from petra_deploy.worker.training.samples import Batch

Regularizer = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Objective:
    distance: Distance
    relations: Relations | None = None
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    balance: Balance | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.relations is not None:
            self.relations.ask(batch.inputs)
        outputs = model(*batch.inputs)
        if isinstance(self.distance, OutputDistance):
            terms = self.distance.terms(outputs, batch.teacher, batch.target)
        else:
            terms = {"outputs": self.distance(outputs, batch.teacher, batch.target)}
        if self.relations is not None:
            terms |= self.relations.terms()
        terms |= {name: regularizer(model) for name, regularizer in self.regularizers.items()}
        if self.balance is not None:
            total: Tensor = self.balance(terms)
            return total
        return torch.stack(list(terms.values())).sum() if terms else outputs[0].new_zeros((), requires_grad=True)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        if self.relations is None:
            yield
            return
        with self.relations.watching(model):
            yield

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model."""
        return [] if self.balance is None else list(self.balance.parameters())

    def to(self, device: str) -> None:
        if self.balance is not None:
            self.balance.to(device)
        if self.relations is not None:
            self.relations.teacher.to(device)
