"""Knobs turned to a height between 0 and 1, as option values: what the search would ask for."""

from collections.abc import Mapping

from petra_deploy.core.plan import Knob, Layout


def knobs_at(knobs: Mapping[str, Knob], height: float, layout: Layout) -> dict[str, object]:
    """Every knob at the same height; one that groups have, at that height for each of them."""
    return {name: _option(knob, height, layout) for name, knob in knobs.items()}


def _option(knob: Knob, height: float, layout: Layout) -> object:
    groups = [group.name for group in layout.of_kind(knob.per)] if knob.per else []
    if knob.kind == "subset":
        return groups[: max(1, round(height * knob.high * len(groups)))]
    if knob.per:
        return {name: knob.at(height) for name in groups}
    return knob.at(height)
