"""Genomes a step away from a good one: smaller all round or in one place, with another's strengths, with one more.

for genome in further(encoding, best):           # the boldest first
    study.enqueue_trial(genome)
"""

from petra_deploy.core.outcome import Outcome
from petra_deploy.core.plan import Phase
from petra_deploy.driver.search.encoding import LEAST, LEFT_OUT, STEER, Encoding, Genome
from petra_deploy.driver.search.genes import seldom, strength_of, stronger

_KEPT = (0.6, 0.8)  # what a step on keeps of what was kept: a long one, and a short one
_TRIED = 0.75  # the gene at which what presets leave out is tried, on the best: half of its range


def further(encoding: Encoding, genome: Genome) -> list[dict[str, float]]:
    """Steps on from a genome: all strengths that it uses at once, each by itself, the same smaller; then the rest.

    What is in use keeps `_KEPT` of what it kept before; of a subset one more is taken. After the first comes the same
    with all groups alike, or steered again where they were: a layer may be sensitive and still be what costs most.
    A strength that the genome leaves out is begun last, and by itself.
    """
    found: list[dict[str, float]] = []
    begun: list[dict[str, float]] = []
    for kept in _KEPT:
        each = {}
        for offer, name, knob in encoding.strengths():
            gene = f"{offer.technique}.{name}"
            groups = len(encoding.plan.layout.of_kind(knob.per)) if knob.per else 1
            after = stronger(knob, genome.get(gene, 0.0), kept, groups)
            if after is not None and strength_of(knob, genome.get(gene, 0.0)) >= LEAST:
                each[gene] = after
            elif after is not None and kept == _KEPT[0]:
                begun.append({**genome, gene: after})
        together = {**genome, **each}
        steered = {gene: genome[gene] for gene in map("{}.steer".format, each) if gene in genome}
        turned = {gene: STEER if steer < LEAST else 0.0 for gene, steer in steered.items()}
        others = [{**together, **turned}] if turned and kept == _KEPT[0] else []
        steps = [together, *others, *({**genome, gene: after} for gene, after in each.items())]
        found += [one for one in steps if one != genome and one not in found]
    return found + begun


def joined(encoding: Encoding, genome: Genome, other: Genome) -> dict[str, float] | None:
    """`genome` with the strengths of `other` that it leaves out; None where there is none."""
    begun = {}
    for offer, name, knob in encoding.strengths():
        gene = f"{offer.technique}.{name}"
        ours, theirs = (strength_of(knob, each.get(gene, 0.0)) for each in (genome, other))
        if ours < LEAST <= theirs:
            begun[gene] = other[gene]
    return {**genome, **begun} if begun else None


def active(encoding: Encoding, genome: Genome, outcome: Outcome) -> dict[str, float]:
    """`genome` without what presets leave out and what took no parameter away, as the outcome's facts say."""
    facts = outcome.graph.facts if outcome.graph else {}
    idle = {name for name, told in facts.items() if isinstance(told, dict) and _equal(told.get("parameters"))}
    strengths = [(offer.technique, name) for offer, name, knob in encoding.strengths() if seldom(knob)]
    return {**genome, **{f"{technique}.{name}": LEFT_OUT for technique, name in strengths if technique in idle}}


def _equal(counts: object) -> bool:
    """Whether a model had as many parameters before as after."""
    return isinstance(counts, list | tuple) and len(counts) == 2 and counts[0] == counts[1]


def extras(encoding: Encoding, genome: Genome) -> list[dict[str, float]]:
    """The same with one technique more that presets leave out, each at half of its strength."""
    found = []
    for offer in encoding.plan.offers:
        left_out = [name for name, knob in offer.knobs.items() if knob.strength and seldom(knob)]
        if left_out and offer.phase is Phase.SHRINK:
            found.append({**genome, **{f"{offer.technique}.{name}": _TRIED for name in left_out}})
    return found
