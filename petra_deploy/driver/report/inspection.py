"""What `inspect` shows: the facts of a model, and which techniques apply to it, and why others do not."""

from collections.abc import Iterator

from petra_deploy.core.plan import Inspected
from petra_deploy.core.workload import TensorSpec, Workload
from petra_deploy.driver.report.table import printable


def text(workload: Workload, inspected: Inspected, target: str) -> str:
    return "\n".join(printable(line) for line in _lines(workload, inspected, target))


def _lines(workload: Workload, inspected: Inspected, target: str) -> Iterator[str]:
    layout = inspected.layout
    yield f"model       {workload.name}, form {workload.form}"
    yield f"parameters  {layout.parameters:,} ({layout.bytes:,} bytes)"
    for label, specs in (("inputs", workload.signature.inputs), ("outputs", workload.signature.outputs)):
        yield f"{label:<11} {', '.join(map(_spec, specs))}"
    yield f"metric      {workload.metric.name}, on {workload.selection.rows} rows that choose"
    most = sorted(layout.operators.items(), key=lambda pair: -pair[1])
    yield f"operators   {', '.join(f'{count} {name}' for name, count in most)}"
    yield ""
    turned = {knob.per for offer in inspected.offers for knob in offer.knobs.values()} - {"precision"}
    shrinking = [group for group in layout.groups if group.kind in turned]
    yield f"{len(shrinking)} groups can shrink"
    for group in shrinking:
        size = f"{group.width} wide, {group.parameters:,} parameters, {group.macs:,} MACs"
        yield f"  {group.kind:<9} {group.name}: {size}"
    if parts := layout.of_kind("precision"):
        yield f"{len(parts)} parts can be int8 or float each: {', '.join(part.name for part in parts)}"
    yield ""
    yield f"for target {target} these techniques apply"
    for offer in inspected.offers:
        if not offer.off:
            yield f"  {offer.technique}{': ' if offer.knobs else ''}{', '.join(offer.knobs)}"
    for offer in inspected.offers:
        if offer.off:
            yield f"  {offer.technique}, only with --with {offer.technique}: {offer.off}"
    if inspected.unavailable:
        yield "and these do not"
        for name, why in sorted(inspected.unavailable.items()):
            yield f"  {name}: {why}"
    for note in workload.notes:
        yield f"note: {note}"


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]"
