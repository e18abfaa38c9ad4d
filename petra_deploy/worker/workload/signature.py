"""Find out how a module is called and what it gives, by its parameters and by trying.

    called = settle(module, example, specs, log)
    called.signature, called.names, called.call

Names come from the data, from `--input`, and from forward's parameters; the way of calling from
which of them agree; types from the data, with a second guess for whole numbers (an image or
indices?); the outputs, and which dimensions follow the rows, from running it with 2 and 3 rows.
"""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import BATCH, Signature, TensorSpec
from petra_deploy.worker.model.adapter import Adapter, Call
from petra_deploy.worker.workload.fit import cast
from petra_deploy.worker.workload.inputs import FREE, InputSpec, Run, random_rows
from petra_deploy.worker.workload.outputs import observe
from petra_deploy.worker.workload.table import Array, Table
from petra_deploy.worker.workload.words import one_line

_HINT = "check the data's names, types and shapes, or say them with --input, as in --input image:float32[1,3,224,224]"


@dataclass(frozen=True)
class Called:
    signature: Signature
    names: tuple[str, ...]
    call: Call
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameters:
    """Of a forward: all names, how many may be given by position, which must be given."""

    names: tuple[str, ...]
    positional: int
    required: tuple[str, ...]
    open_ended: bool = False  # it takes any number: *args or **kwargs


def parameters(module: torch.nn.Module) -> Parameters:
    if not hasattr(module, "forward"):
        raise Problem(
            "unsupported", f"{type(module).__name__} has no single forward", "wrap it in a module that has one"
        )
    if isinstance(module, torch.jit.ScriptModule):
        found = getattr(module.forward, "schema").arguments[1:]  # noqa: B009 - of a script method only
        names = tuple(argument.name for argument in found)
        return Parameters(names, len(names), tuple(a.name for a in found if not a.has_default_value()))
    try:
        known = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return Parameters((), 0, (), True)
    if type(module).forward is torch.nn.Module.forward:
        raise Problem("input", f"{type(module).__name__} has no forward", "give the module that computes the outputs")
    plain = [p for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Parameters(
        tuple(p.name for p in plain),
        sum(p.kind is not p.KEYWORD_ONLY for p in plain),
        tuple(p.name for p in plain if p.default is p.empty),
        len(plain) < len(known),
    )


def settle(module: torch.nn.Module, example: Table | None, specs: Sequence[InputSpec]) -> Called:
    """Raises Problem("input") where forward cannot be called with what is at hand."""
    takes = parameters(module)
    wanted, notes = _wanted(example, specs, takes.names)
    used, ways = _ways(wanted, takes)
    if left := [name for name in wanted if name not in used]:
        notes += (f"arrays that forward does not take were left out: {', '.join(left)}",)
    failure: tuple[str, Exception] | None = None
    for types in _types([wanted[name] for name in used]):
        inputs = tuple(replace(wanted[name].spec, dtype=dtype) for name, dtype in zip(used, types, strict=True))
        for call in ways:
            run = runner(Adapter(module, used, call))
            try:
                run(feeds(inputs, example, 2))
            except Exception as error:  # whatever the user's forward raises: the first is the one to tell
                failure = failure or (_said(inputs, call), error)
            else:
                signature, more = observe(inputs, run, partial(feeds, inputs, example))
                return Called(signature, tuple(used), call, (*notes, *more))
    if failure is None:
        raise Problem("input", "the model takes no inputs", _HINT)
    said, cause = failure
    if isinstance(cause, Problem):
        raise cause
    one_row = _single(module, used, ways, wanted, example)
    if one_row is not None:
        return replace(one_row, notes=(*notes, *one_row.notes))
    raise Problem("input", f"the model's forward raised {one_line(cause)}, called with {said}", _HINT) from cause


def runner(adapter: Adapter) -> Run:
    """Feeds to named outputs, without gradients."""

    def run(feeds: dict[str, Array]) -> list[tuple[str, Array]]:
        tensors = [torch.from_numpy(np.array(feeds[name])) for name in adapter.names]
        with torch.no_grad():
            outputs = adapter.named_outputs(*tensors)
        if not outputs:
            raise TypeError("the model returns no tensor")
        return [(name, value.detach().numpy()) for name, value in outputs]

    return run


@dataclass(frozen=True)
class _Wanted:
    spec: TensorSpec
    fixed: bool  # the type was said by the user


def _wanted(
    example: Table | None, specs: Sequence[InputSpec], names: Sequence[str]
) -> tuple[dict[str, _Wanted], tuple[str, ...]]:
    """What is known of each input by name, from the data and `--input`."""
    said = {spec.name or _name(i, names, example): spec for i, spec in enumerate(specs)}
    if example is None and not said:
        raise Problem(
            "input", "nothing tells what this model's inputs look like", "add --data, or " + _HINT.split("or ")[1]
        )
    found: dict[str, _Wanted] = {}
    arrays = {} if example is None else example.inputs
    if example is not None and len(said) == len(arrays) == 1 and not set(said) & set(arrays):
        arrays = {next(iter(said)): next(iter(arrays.values()))}
    for name in dict.fromkeys((*arrays, *said)):
        spec, values = said.get(name), arrays.get(name)
        if values is None and example is not None:
            raise Problem(
                "input", f"--input names {name!r}, which the data does not hold: it has {', '.join(arrays)}", _HINT
            )
        shape = spec.shape if spec and spec.shape else None
        if values is not None:
            shape = _merged(name, shape, values)
        if shape is None:
            raise Problem("input", f"--input {name} has no shape", _HINT)
        dtype = (spec.dtype if spec else None) or (_plain(values) if values is not None else "float32")
        found[name] = _Wanted(TensorSpec(name=name, dtype=dtype, shape=(BATCH, *shape[1:])), bool(spec and spec.dtype))
    return found, ()


def _merged(name: str, said: tuple[int | str, ...] | None, values: Array) -> tuple[int | str, ...]:
    """The data's shape, with the dynamic dimensions that `--input` names."""
    if said is None:
        return values.shape
    fits = len(said) == values.ndim and all(
        isinstance(s, str) or s == n for s, n in zip(said[1:], values.shape[1:], strict=True)
    )
    if not fits:
        raise Problem(
            "input",
            f"--input says {name} is {list(said)}, the data says {list(values.shape)}",
            "the first dimension is the rows; the others must agree, or be a name",
        )
    return said


def _name(index: int, names: Sequence[str], example: Table | None) -> str:
    if example is not None and index < len(example.inputs):
        return list(example.inputs)[index]
    return names[index] if index < len(names) else "input"


def _ways(wanted: dict[str, _Wanted], takes: Parameters) -> tuple[list[str], list[Call]]:
    """The inputs that forward takes, in its order, and the ways to call it, likeliest first."""
    names, required = takes.names, takes.required
    shared = [name for name in names if name in wanted]
    if shared and set(required) <= set(shared):
        by_position = tuple(shared) == names[: min(len(shared), takes.positional)]
        ways: list[Call] = ["args"] if by_position else ["kwargs"]
        return shared, [*ways, "dict"] if len(names) == len(wanted) == 1 else ways
    given = list(wanted)
    if len(given) == 1 and len(required) <= 1:
        return given, ["args", "dict"]
    if len(required) <= 1 and (len(names) == 1 or takes.open_ended):
        return given, ["kwargs", "args", "dict"] if takes.open_ended else ["dict"]
    missing = [name for name in required if name not in wanted]
    raise Problem(
        "input",
        f"the model's forward takes {', '.join(required)}; there is no {', '.join(missing)} among {', '.join(given)}",
        "name the data's arrays (or --input) as forward's parameters",
    )


def _types(wanted: Sequence[_Wanted]) -> list[tuple[str, ...]]:
    """Types to try, likeliest first: whole numbers may be indices or an image."""
    choices: list[tuple[str, ...]] = []
    for want in wanted:
        whole = np.dtype(want.spec.dtype).kind in "iu"
        if want.fixed or not whole:
            choices.append((want.spec.dtype,))
        elif want.spec.dtype == "uint8":  # pixels, most likely
            choices.append(("float32", "int64"))
        else:
            choices.append(("int64", "float32"))
    return list(itertools.islice(itertools.product(*choices), 16))


def _plain(values: Array) -> str:
    """The type that models mostly take for data like this."""
    if values.dtype.kind == "b" or values.dtype == np.uint8:
        return str(values.dtype)
    return "float32" if values.dtype.kind == "f" else "int64"


def feeds(inputs: Sequence[TensorSpec], example: Table | None, rows: int) -> dict[str, Array]:
    """The first rows of the data, repeated where there are fewer; or made up."""
    if example is None:
        return random_rows(inputs, rows, 0, {})
    arrays = list(example.inputs.values())
    feeds: dict[str, Array] = {}
    for spec in inputs:
        values = example.inputs[spec.name] if spec.name in example.inputs else arrays[0]
        part = np.resize(np.arange(min(len(values), rows)), rows)
        feeds[spec.name] = cast(values[part], spec.dtype, spec.name, example.where)[0]
    return feeds


def _single(
    module: torch.nn.Module, used: list[str], ways: list[Call], wanted: dict[str, _Wanted], example: Table | None
) -> Called | None:
    """How the model is called if it takes one row at a time only."""
    for types in _types([wanted[name] for name in used]):
        for call in ways:
            inputs = tuple(
                replace(wanted[n].spec, dtype=t, shape=(1, *wanted[n].spec.shape[1:]))
                for n, t in zip(used, types, strict=True)
            )
            try:
                outputs = runner(Adapter(module, used, call))(feeds(inputs, example, 1))
            except Exception:  # it was tried before with more rows, and that error is the one told
                continue
            if any(value.ndim == 0 or len(value) != 1 for _, value in outputs[:1]):
                continue
            specs = tuple(TensorSpec(name=name, dtype=str(v.dtype), shape=v.shape) for name, v in outputs)
            note = "the model takes one row at a time only, so nothing was measured at larger batches"
            return Called(Signature(inputs=inputs, outputs=specs), tuple(used), call, (note,))
    return None


def _said(inputs: Sequence[TensorSpec], call: Call) -> str:
    shapes = ", ".join(
        f"{s.name}: {s.dtype}{[2, *(FREE if isinstance(n, str) else n for n in s.shape[1:])]}" for s in inputs
    )
    return f"a dict of {shapes}" if call == "dict" else shapes
