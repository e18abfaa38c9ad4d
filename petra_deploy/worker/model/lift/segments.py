"""The parts of a flat graph that were blocks of the user's module, so that techniques find blocks again.

    fold(flat)        # the tape, in which each block is a tape of its own: "stages.0.1", "encoder.layers.3"

A block has layers, one output, and an input of that output's shape. Its name is the scope that
exporters write into names. Where they wrote none, a block is what stands between the input of a
residual sum and the sum, and is called "residual.0", "residual.1".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from petra_deploy.worker.model.lift.build import Flat
from petra_deploy.worker.model.lift.places import holder
from petra_deploy.worker.model.lift.tape import Argument, Held, Ref, Scope, Step, Tape, finished


@dataclass(frozen=True)
class Segment:
    path: str
    members: frozenset[int]  # of the flat steps
    main: str  # the input that could stand for the output
    output: str


class _Graph:
    """Who makes and who reads each value of the flat steps."""

    def __init__(self, flat: Flat) -> None:
        self.steps, self.shapes, self.scopes = flat.steps, flat.shapes, flat.scopes
        self.maker = {name: i for i, step in enumerate(flat.steps) for name in step.outputs if name}
        self.readers: dict[str, list[int]] = {}
        for index, step in enumerate(flat.steps):
            for name in step.reads:
                self.readers.setdefault(name, []).append(index)
        self.ends = set(flat.tape.outputs)

    def above(self, names: Iterable[str], within: frozenset[int] | set[int] | None = None) -> set[int]:
        """The steps that `names` are computed by."""
        found: set[int] = set()
        waiting = [self.maker[name] for name in names if name in self.maker]
        while waiting:
            index = waiting.pop()
            if index in found or (within is not None and index not in within):
                continue
            found.add(index)
            waiting += [self.maker[name] for name in self.steps[index].reads if name in self.maker]
        return found

    def below(self, name: str) -> set[int]:
        """The steps that depend on `name`."""
        found: set[int] = set()
        waiting = list(self.readers.get(name, ()))
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [i for output in self.steps[index].outputs for i in self.readers.get(output, ())]
        return found

    def layers(self, members: Iterable[int]) -> set[str]:
        return {self.steps[i].layer for i in members if self.steps[i].layer}

    def inputs(self, members: frozenset[int]) -> list[str]:
        """Values that the members read and others make, the latest first."""
        names = {name for i in members for name in self.steps[i].reads if self.maker.get(name, -1) not in members}
        return sorted(names, key=lambda name: (-self.maker.get(name, -1), name))

    def outputs(self, members: frozenset[int]) -> list[str]:
        """Values that the members make and others read, the latest first."""
        made = (name for i in sorted(members, reverse=True) for name in self.steps[i].outputs if name)
        return [n for n in made if n in self.ends or any(i not in members for i in self.readers.get(n, ()))]

    def segment(self, path: str, members: frozenset[int], main: str | None = None) -> Segment | None:
        """The block that these steps are; what can be computed before it is left outside."""
        for output in self.outputs(members):
            if output not in self.shapes:
                continue
            early = self.above([name for name in self.outputs(members) if name != output], members)
            if self.layers(early):
                continue
            kept = members - early
            mains = [n for n in self.inputs(kept) if self.shapes.get(n) == self.shapes[output] and main in (None, n)]
            after = self.below(output) - kept
            if not mains or not self.layers(kept) or self.above(self.inputs(kept)) & (after | kept):
                continue
            return Segment(path, kept, mains[0], output)
        return None


def fold(flat: Flat) -> Tape:
    """The tape with its blocks as tapes; `flat` is used up."""
    graph = _Graph(flat)
    segments = _by_scope(graph)
    segments += _by_sum(graph, segments)
    root, steps = flat.tape, dict(enumerate(flat.steps))
    for segment in segments:
        made = _tape(root, graph, segment, segments)
        if made is not None:
            steps = {i: step for i, step in steps.items() if i not in segment.members} | {max(segment.members): made}
    root.steps = finished(list(_ordered(steps)), root.outputs)
    return root


def _by_scope(graph: _Graph) -> list[Segment]:
    """Children of containers, which have a number for a name; a mere chain of such children gives way to them."""
    layers = graph.layers(range(len(graph.steps)))
    prefixes = {p for path in {*layers, *graph.scopes} for p in _prefixes(path) if p.rpartition(".")[2].isdigit()}
    numbered = {p for p in prefixes if any(path.startswith(f"{p}.") for path in layers)}
    found: list[Segment] = []
    for prefix in sorted(numbered, key=lambda p: (p.count("."), p)):
        if any(prefix.startswith(f"{segment.path}.") for segment in found):
            continue
        inner = {p for p in numbered if p.startswith(f"{prefix}.")}
        members = frozenset(i for i, path in enumerate(graph.scopes) if f"{path}.".startswith(f"{prefix}."))
        paths = (graph.scopes[i] for i in members)
        direct = {path.removeprefix(prefix).lstrip(".").partition(".")[0] for path in paths}
        if inner and all(part.isdigit() for part in direct):
            continue
        if segment := graph.segment(prefix, members):
            found.append(segment)
    return found


def _by_sum(graph: _Graph, others: list[Segment]) -> list[Segment]:
    """Of sums whose one side is computed from the other; small ones first, none inside another."""
    taken = {i for segment in others for i in segment.members}
    tried = []
    for index, step in enumerate(graph.steps):
        sides = step.reads
        if step.operator != "Add" or index in taken or len(sides) != 2:
            continue
        for skip in sides:
            between = frozenset(graph.above(step.outputs) & graph.below(skip)) | {index}
            if len(between) > 1 and graph.shapes.get(skip) == graph.shapes.get(step.outputs[0], ()):
                tried.append((len(between), index, skip, between))
    found: list[Segment] = []
    for _, _, skip, members in sorted(tried, key=lambda each: each[:2]):
        segment = None if members & taken else graph.segment(f"residual.{len(found)}", members, skip)
        if segment is not None and segment.output in graph.steps[max(members)].outputs:
            found.append(segment)
            taken |= segment.members
    return found


def _tape(root: Tape, graph: _Graph, segment: Segment, others: list[Segment]) -> Step | None:
    """Move the segment's layers into a tape at its path; None where something else stands there, or shares them."""
    inside = graph.layers(segment.members)
    outside = graph.layers(set(range(len(graph.steps))) - segment.members)
    held = {a.path for i in segment.members for a in graph.steps[i].inputs if isinstance(a, Held)}
    below = {n for n, _ in root.named_modules() if n.startswith(f"{segment.path}.")}
    foreign = {path for path in outside if path.startswith(f"{segment.path}.")}
    values = {n for n, _ in (*root.named_parameters(), *root.named_buffers()) if n.startswith(f"{segment.path}.")}
    strange = {v for v in values if not any(v.startswith(f"{layer}.") for layer in inside) and v not in held}
    shared = {a.path for i, s in enumerate(graph.steps) if i not in segment.members for a in s.inputs
              if isinstance(a, Held)} & {h for h in held if h.startswith(f"{segment.path}.")}  # fmt: skip
    if inside & outside or foreign or strange or shared or (segment.path in dict(root.named_modules()) and not below):
        return None
    names = tuple(name for name in graph.inputs(segment.members) if name != segment.main)
    outer = sorted(path for path in held if not path.startswith(f"{segment.path}."))
    tape = Tape((segment.main, *names, *(f"held:{path}" for path in outer)), (segment.output,), ())

    def local(argument: Argument) -> Argument:
        if not isinstance(argument, Held):
            return argument
        return Ref(f"held:{argument.path}") if argument.path in outer else Held(_under(segment, argument.path))

    steps = []
    for i in sorted(segment.members):
        step = graph.steps[i]
        layer = _under(segment, step.layer) if step.layer else ""
        steps.append(replace(step, inputs=tuple(map(local, step.inputs)), layer=layer))
    tape.steps = finished(list(_ordered(dict(enumerate(steps)))), tape.outputs)
    for path in sorted(inside):
        holder(tape, _under(segment, path)).add_module(path.rpartition(".")[2], _take(root, path))
    for path in sorted(held - set(outer)):
        _move_value(root, path, tape, _under(segment, path))
    _clear(root)
    holder(root, segment.path).add_module(segment.path.rpartition(".")[2], tape)
    inputs: tuple[Argument, ...] = (Ref(segment.main), *map(Ref, names), *map(Held, outer))
    return Step("", inputs, (segment.output,), layer=segment.path)


def _under(segment: Segment, path: str) -> str:
    return path.removeprefix(f"{segment.path}.")


def _take(root: nn.Module, path: str) -> nn.Module:
    above, _, last = path.rpartition(".")
    module = root.get_submodule(path)
    del root.get_submodule(above)._modules[last]
    return module


def _move_value(root: nn.Module, path: str, tape: nn.Module, to: str) -> None:
    above, _, last = path.rpartition(".")
    old, new = root.get_submodule(above), holder(tape, to)
    value = getattr(old, last)
    delattr(old, last)
    if isinstance(value, nn.Parameter):
        new.register_parameter(last, value)
    else:
        new.register_buffer(last, value)


def _clear(module: nn.Module) -> None:
    """Take out Scopes that nothing stands in any more."""
    for name, child in list(module.named_children()):
        if isinstance(child, Scope):
            _clear(child)
            if not child._modules and not child._parameters and not child._buffers:
                del module._modules[name]


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _ordered(steps: dict[int, Step]) -> Iterator[Step]:
    """So that each comes after what it reads; otherwise as they were."""
    maker = {name: i for i, step in steps.items() for name in step.outputs if name}
    done: set[int] = set()

    def visit(index: int) -> Iterator[Step]:
        waiting = [(index, False)]
        while waiting:
            i, ready = waiting.pop()
            if i in done:
                continue
            if ready:
                done.add(i)
                yield steps[i]
                continue
            waiting.append((i, True))
            before = (maker[name] for name in reversed(steps[i].reads) if name in maker)
            waiting += [(j, False) for j in before if j not in done]

    for index in sorted(steps):
        yield from visit(index)
