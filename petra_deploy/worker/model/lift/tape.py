"""A module whose forward is a list of steps: the form that a lifted graph has.

    tape = Tape(inputs=("x",), outputs=("y",), steps=(Step("", (Ref("x"),), ("h",), layer="fc1"), ...))

Layers with weights are ordinary children, at paths like those of the user's own module; the techniques
find, cut and replace them there. Parts of the graph that were a module of the user's are tapes too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from petra_deploy.worker.model.lift.operators import OPERATORS
from petra_deploy.worker.model.lift.values import Value, tensor


@dataclass(frozen=True)
class Ref:
    """A value made by an earlier step, or an input."""

    name: str


@dataclass(frozen=True)
class Held:
    """A parameter or buffer of the tape, by its path."""

    path: str


@dataclass(frozen=True)
class Literal:
    """A plain number, a list of them, or None for an input left out."""

    value: Any


Argument = Ref | Held | Literal


@dataclass(frozen=True)
class Step:
    """One operator: by its type, or by the layer that holds its weights."""

    operator: str
    inputs: tuple[Argument, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""  # a path from the tape
    done: tuple[str, ...] = ()  # values that no later step reads

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.inputs if isinstance(argument, Ref))


class Scope(nn.ModuleList):
    """A part of the path to a layer; nothing calls it."""

    def forward(self, *_: Any) -> Any:
        raise NotImplementedError


class Tape(nn.Module):
    def __init__(self, inputs: tuple[str, ...], outputs: tuple[str, ...], steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.inputs, self.outputs, self.steps = inputs, outputs, steps

    def forward(self, *tensors: Any) -> Any:
        values: dict[str, Value] = dict(zip(self.inputs, tensors, strict=True))
        for step in self.steps:
            results = run(self, step, [self.value(argument, values) for argument in step.inputs])
            values.update(zip(step.outputs, results, strict=False))
            for name in step.done:
                del values[name]
        results = tuple(values[name] for name in self.outputs)
        return results if len(results) != 1 else results[0]

    def value(self, argument: Argument, values: Mapping[str, Value]) -> Value:
        if isinstance(argument, Ref):
            return values[argument.name]
        if isinstance(argument, Literal):
            return argument.value
        owner, _, name = argument.path.rpartition(".")
        return getattr(self.get_submodule(owner), name)


def run(tape: nn.Module, step: Step, given: list[Value]) -> tuple[Value, ...]:
    """The step's outputs. Raises what its operator raises."""
    if step.layer:
        results = tape.get_submodule(step.layer)(*given)
    else:
        results = OPERATORS[step.operator](step.attributes, *given)
    return results if isinstance(results, tuple) else (results,)


def finished(steps: list[Step], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps in their order, each with the values that it is the last to read (or that nobody reads)."""
    known: set[str] = set(outputs)
    result: list[Step] = []
    for step in reversed(steps):
        names = dict.fromkeys((*step.reads, *(name for name in step.outputs if name)))
        result.append(replace(step, done=tuple(name for name in names if name not in known)))
        known.update(names)
    return tuple(reversed(result))


def as_tensors(values: tuple[Value, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor(value) for value in values)
