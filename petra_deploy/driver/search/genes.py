"""One gene and what it stands for: the value of a knob, a share of the groups, and a step further.

Genes lie in [0, 1]. The lower half of a `seldom` knob's gene leaves its technique out.
"""

import math
from collections.abc import Sequence

from petra_deploy.core.plan import Group, Knob

_STEER = 0.8  # how far sensitivity may move a group from the common level


def seldom(knob: Knob) -> bool:
    """A strength, or a part of the groups, without known-good values: most candidates go without it."""
    return (knob.strength or knob.kind == "subset") and not knob.ladder


def within(gene: float) -> float:
    """The upper half of a gene whose lower half leaves the technique out, as 0 to 1."""
    return max(2 * gene - 1, 0.0)


def strength_of(knob: Knob, gene: float) -> float:
    """What a gene of a strength stands for: a share to remove, or the share of the groups that go."""
    gene = within(gene) if seldom(knob) else gene
    return gene * knob.high if knob.kind == "subset" else float(str(knob.at(gene)))


def stronger(knob: Knob, gene: float, kept: float, groups: int) -> float | None:
    """The gene of a strength one step on, or None where there is none."""
    now = strength_of(knob, gene)
    after = (round(now * groups) + 1) / max(groups, 1) if knob.kind == "subset" else 1.0 - (1.0 - now) * kept
    if knob.kind == "subset" and after > knob.high + 1e-9:
        return None
    after = min(after, knob.high)
    moved = gene_of(knob, after)
    moved = (moved + 1) / 2 if seldom(knob) else moved
    return moved if moved > gene + 1e-3 else None


def gene_of(knob: Knob, value: float) -> float:
    """The gene that decodes to `value`."""
    if knob.kind == "subset":
        return value / knob.high
    if knob.log:
        return (math.log(value) - math.log(knob.low)) / (math.log(knob.high) - math.log(knob.low))
    return (value - knob.low) / (knob.high - knob.low)


def ranks(groups: Sequence[Group]) -> dict[str, float]:
    """-1 for the least sensitive to +1 for the most; 0 for all where nothing is known."""
    order = sorted(groups, key=lambda g: (g.sensitivity if g.sensitivity is not None else 0.0, g.name))
    if len(order) < 2 or all(g.sensitivity is None for g in groups):
        return {g.name: 0.0 for g in groups}
    return {g.name: 2 * i / (len(order) - 1) - 1 for i, g in enumerate(order)}


def share_of(groups: Sequence[Group], share: float, *, most_sensitive: bool) -> list[str]:
    """The names of a share of the groups: the least sensitive, or the most."""
    order = sorted(groups, key=lambda g: (g.sensitivity if g.sensitivity is not None else 0.0, g.name),
                   reverse=most_sensitive)  # fmt: skip
    return sorted(g.name for g in order[: round(share * len(order))])


def steered(groups: Sequence[Group], ratio: float, steer: float, knob: Knob) -> dict[str, float]:
    """A ratio a group: more is kept of sensitive groups, less of the others."""
    place = ranks(groups)
    keep = 1.0 - ratio
    return {
        g.name: round(min(max(1.0 - keep ** (1.0 - _STEER * steer * place[g.name]), 0.0), knob.high), 4) for g in groups
    }
