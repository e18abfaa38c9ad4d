"""Genome and strategy: a handful of coefficients in [0, 1], decoded over a sensitivity ranking.

    encoding = Encoding(plan, cost, seed)
    strategy = encoding.decode({"prune.ratios": 0.8, "prune.ratios.steer": 0.5, "quantize": 0.3, ...}, allowance=30)

A knob that every group has (a pruning ratio) costs two genes whatever the number of groups: its
level, and how strongly sensitivity steers it from group to group. A subset knob (blocks to drop)
costs one: the share taken, least sensitive first. The search over few coefficients finds in 30
trials what one gene a group does not find in 120 (docs/decisions/0002-few-coefficients.md).
A strength without a ladder of known-good values belongs to a technique that pays for some models only:
the lower half of its gene leaves it out, so that most candidates go without it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from petra_deploy.core.extension import Space
from petra_deploy.core.plan import Knob, Offer, Phase, Plan
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.search.cost_model import CostModel
from petra_deploy.driver.search.genes import gene_of, seldom, share_of, steered, within

Genome = Mapping[str, float]
LEAST = 0.04  # a strength below this does nothing: its step is left out
LEFT_OUT = 0.25  # the gene of what presets leave out, in the middle of the half that leaves it out
STEER = 0.4  # how far presets let sensitivity move the groups from their common level
_ROWS_SEEN = 9600  # in a training, where an epoch has few
_SPREAD = 4.0  # training time runs from 1/_SPREAD to _SPREAD/2 of a trial's fair share


@dataclass(frozen=True)
class Encoding:
    plan: Plan
    cost: CostModel
    seed: int

    @property
    def space(self) -> Space:
        return Space(names=tuple(self._genes()))

    def _genes(self) -> Iterator[str]:
        for offer in self.plan.offers:
            for name, knob in offer.knobs.items():
                yield f"{offer.technique}.{name}"
                if knob.per and knob.kind == "real":
                    yield f"{offer.technique}.{name}.steer"
            if _optional(offer):
                yield f"{offer.technique}.use"
        if self._quantizers():
            yield "quantize"
        for name in self.plan.runtime:
            yield f"runtime.{name}"

    def quantizers(self) -> tuple[str, ...]:
        """The names of the quantizers that apply, in the order in which they are tried."""
        return tuple(offer.technique for offer in self._quantizers())

    def _quantizers(self) -> tuple[Offer, ...]:
        found = (offer for offer in self.plan.offers if offer.phase is Phase.QUANTIZE)
        return tuple(sorted(found, key=lambda o: (o.order, o.acts_on != "module", o.technique)))

    def decode(
        self, genome: Genome, *, allowance: float, epochs: float | None = None, again: Sequence[float] = (),
        broken: Collection[str] = (),
    ) -> Strategy:  # fmt: skip
        """The strategy a genome stands for; `allowance` is a trial's fair share of training, seconds.

        `epochs`, where given, stands for what the allowance would buy of recovery training, which is repeated `again`,
        for so many epochs each time; quantizers in `broken` give way to the next. The same genome, allowance and
        cost model give the same strategy.
        """
        quantizer = self._quantizer(genome.get("quantize", 0.0), broken)
        steps = []
        shrunk = False
        for offer in sorted(self.plan.offers, key=lambda o: (o.acts_on != "module", o.phase, o.technique)):
            if offer.phase is Phase.QUANTIZE and offer.technique != quantizer:
                continue
            if offer.phase is Phase.RECOVER and not shrunk:
                continue
            if _optional(offer) and genome.get(f"{offer.technique}.use", 0.0) < 0.5:
                continue
            options = self._options(offer, genome)
            if options is None:
                continue
            shrunk = shrunk or offer.phase is Phase.SHRINK
            steps.append(Step(technique=offer.technique, options=options))
        runtime: dict[str, object] = {}
        for name, knob in self.plan.runtime.items():
            value = knob.at(genome.get(f"runtime.{name}", 0.0))
            if value != knob.at(0.0):  # the backend's own default is not written down
                runtime[name] = value
        strategy = Strategy(steps=tuple(steps), runtime=runtime, seed=self.seed)
        return self._with_epochs(strategy, genome, allowance, epochs, again)

    def _quantizer(self, gene: float, broken: Collection[str] = ()) -> str | None:
        names = [None, *(offer.technique for offer in self._quantizers())]
        first = min(int(gene * len(names)), len(names) - 1)
        return next((name for name in (*names[first:], *names[1:first]) if name not in broken), None)

    def quantizer_gene(self, technique: str | None) -> float:
        """The middle of the range of "quantize" that means this technique."""
        names = [None, *(offer.technique for offer in self._quantizers())]
        return (names.index(technique) + 0.5) / len(names)

    def _options(self, offer: Offer, genome: Genome) -> dict[str, object] | None:
        """The technique's options, or None where its strength says that it does nothing."""
        options: dict[str, object] = dict(offer.fixed)
        for name, knob in offer.knobs.items():
            gene = genome.get(f"{offer.technique}.{name}", 0.0)
            if seldom(knob):
                gene = within(gene)
            groups = self.plan.layout.of_kind(knob.per) if knob.per else ()
            if knob.kind == "subset":
                chosen = share_of(groups, gene * knob.high, most_sensitive=knob.most_sensitive)
                if knob.strength and not chosen:
                    return None
                if chosen:
                    options[name] = chosen
            elif knob.per:
                level = knob.at(gene)
                if knob.strength and float(str(level)) < LEAST:
                    return None
                steer = genome.get(f"{offer.technique}.{name}.steer", 0.5)
                options[name] = steered(groups, float(str(level)), steer, knob)
            elif knob.strength and gene < LEAST:
                return None
            else:
                options[name] = knob.at(gene)
        return options

    def _with_epochs(
        self, strategy: Strategy, genome: Genome, allowance: float, given: float | None, again: Sequence[float]
    ) -> Strategy:
        """Turn the epochs gene into as many epochs as its share of the trial's time buys; add further trainings."""
        steps = []
        for step in strategy.steps:
            offer = self.plan.offer(step.technique)
            knob = offer.knobs.get("epochs") if offer else None
            if knob is not None:
                gene = genome.get(f"{step.technique}.epochs", 0.5)
                seconds = allowance * (_SPREAD ** (2 * gene - 1)) / (1 if gene < 0.5 else 1 + (gene - 0.5) * 2)
                epoch = max(self.cost.epoch_seconds(strategy), 1e-6)
                epochs = min(max(seconds / epoch, 0.1), knob.high)
                recovers = offer is not None and offer.phase is Phase.RECOVER
                if recovers and given is not None:
                    epochs = given
                rounded = round(epochs) if epochs >= 2 else round(epochs, 1)  # the same type, so the same key
                steps.append(replace(step, options={**step.options, "epochs": rounded}))
                if recovers:
                    steps += [_gently(steps[-1], more) for more in again]
                    given, again = None, ()  # they are of the first that trains
            else:
                steps.append(step)
        return replace(strategy, steps=tuple(steps))

    def presets(self) -> list[dict[str, float]]:
        """Known-good genomes: quantization alone first, then the ladder from mild to strong.

        Where the target settles a step (FP16 on a GPU), that step alone comes before.
        """
        quantizers = self._quantizers()
        first = self.quantizer_gene(quantizers[0].technique if quantizers else None) if quantizers else 0.0
        rungs = max((len(k.ladder) for o in self.plan.offers for k in o.knobs.values() if k.strength), default=0)
        genomes = [self._rung(0.0, first, off=True)]
        if quantizers and any(offer.settled for offer in self.plan.offers):
            genomes.insert(0, self._rung(0.0, self.quantizer_gene(None), off=True))
        genomes += [self._rung(i / max(rungs - 1, 1), first) for i in range(rungs)]
        return genomes

    def _rung(self, height: float, quantize: float, *, off: bool = False) -> dict[str, float]:
        """Every knob at `height` (0 mild to 1 strong) of its ladder; `off`: nothing is shrunk."""
        genome: dict[str, float] = {}
        recoverers = [o for o in self.plan.offers if o.phase is Phase.RECOVER]
        for offer in self.plan.offers:
            for name, knob in offer.knobs.items():
                gene = f"{offer.technique}.{name}"
                if seldom(knob):
                    genome[gene] = LEFT_OUT
                elif off and knob.strength:
                    genome[gene] = 0.0
                elif name == "epochs":
                    genome[gene] = 0.5
                elif knob.ladder:
                    genome[gene] = gene_of(knob, knob.ladder[round(height * (len(knob.ladder) - 1))])
                else:
                    genome[gene] = 0.0
                if knob.per and knob.kind == "real":
                    genome[f"{gene}.steer"] = STEER
            if _optional(offer):
                genome[f"{offer.technique}.use"] = 1.0 if recoverers == [offer] else 0.0
        if self._quantizers():
            genome["quantize"] = quantize
        genome |= {f"runtime.{name}": 0.0 for name in self.plan.runtime}
        return genome

    def neighbours(self, genome: Genome, besides: Collection[str | None] = ()) -> list[dict[str, float]]:
        """The same shape and training in other precisions, `besides` some: cheap, since the module is in the store."""
        left_out = {*besides, self._quantizer(genome.get("quantize", 0.0))}
        others = [None, *(offer.technique for offer in self._quantizers())]
        return [{**genome, "quantize": self.quantizer_gene(name)} for name in others if name not in left_out]

    def serving(self, genome: Genome, settings: Mapping[str, str]) -> list[dict[str, float]]:
        """The same graph with each of `settings` of the runtime, where it is not served so already."""
        found = []
        for name, value in settings.items():
            knob, gene = self.plan.runtime.get(name), f"runtime.{name}"
            if knob is not None and value in knob.choices and knob.at(genome.get(gene, 0.0)) != value:
                found.append({**genome, gene: (knob.choices.index(value) + 0.5) / len(knob.choices)})
        return found

    def strengths(self) -> Iterator[tuple[Offer, str, Knob]]:
        """(offer, option, knob) of what makes the model smaller."""
        for offer in self.plan.offers:
            if offer.phase is Phase.SHRINK:
                yield from ((offer, name, knob) for name, knob in offer.knobs.items() if knob.strength)

    @property
    def shrinks(self) -> bool:
        """Whether any technique on offer makes the model smaller."""
        return any(offer.phase is Phase.SHRINK for offer in self.plan.offers)

    def shrunk(self, strategy: Strategy) -> bool:
        names = {offer.technique for offer in self.plan.offers if offer.phase is Phase.SHRINK}
        return any(step.technique in names for step in strategy.steps)

    def trained_otherwise(self, genome: Genome) -> list[dict[str, float]]:
        """The same shape and length of training, its other settings (not the rate) turned one by one."""
        found = []
        for offer in self.plan.offers:
            for name, knob in offer.knobs.items():
                if offer.phase is Phase.RECOVER and knob.kind in ("integer", "choice") and name != "epochs":
                    gene = f"{offer.technique}.{name}"
                    found.append({**genome, gene: 0.0 if genome.get(gene, 0.0) > 0.5 else 1.0})
        return found

    def wanted_seconds(self, strategy: Strategy) -> float:
        """Training time that a trial of this shape would do well with: fifteen epochs; where rows are few, more."""
        if not any("epochs" in offer.knobs for offer in self.plan.offers):
            return 0.0
        epochs = min(max(_ROWS_SEEN / max(self.plan.train_rows, 1), 15.0), 25.0)
        return min(max(epochs * self.cost.epoch_seconds(strategy), 6.0), 60.0)


def _optional(offer: Offer) -> bool:
    """Techniques without a strength of their own get an on-off gene, except quantizers and what is settled."""
    strength = any(knob.strength for knob in offer.knobs.values()) or "epochs" in offer.knobs
    return offer.phase in (Phase.RECOVER, Phase.REWRITE, Phase.FINISH) and not strength and not offer.settled


def _gently(step: Step, epochs: float) -> Step:
    """A further training of what the step trained, at half of its rate."""
    options = {**step.options, "epochs": epochs}
    if "lr" in options:
        options["lr"] = float(f"{float(str(options['lr'])) / 2:.4g}")
    return replace(step, options=options)
