"""The plan of a search: what the model is made of, what may be done to it, and what that costs."""

from collections.abc import Collection
from dataclasses import replace

from petra_deploy.core.errors import BadInput
from petra_deploy.core.job import Inspect, Probe
from petra_deploy.core.outcome import Failed
from petra_deploy.core.plan import Group, Inspected, Offer, Phase, Plan, Probed
from petra_deploy.core.request import Request
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Workload
from petra_deploy.driver.search.cost_model import CostModel
from petra_deploy.driver.search.encoding import Encoding
from petra_deploy.driver.session import Session

_STRENGTHS = (0.3, 0.5, 0.7, 0.9)  # of a technique that was asked for and names none itself
_EPOCHS, _SHARE = 3.0, 0.3  # so many epochs of the smallest network in more than this share of the time: not asked


def make_plan(workload: Workload, target: Target, request: Request, session: Session) -> Plan:
    """Inspect, then probe; what cannot be probed is searched without sensitivities, and said.

    Raises BadInput where the user asks for a technique that does not apply.
    """
    inspected: Inspected = session.must(Inspect(workload=workload, target=target, limits=session.limits()))
    inspected = asked(inspected, request.with_techniques, request.without_techniques)
    layout, costs = inspected.layout, Probed(sensitivity={}, train_seconds_per_row=None, forward_seconds_per_row=0.0)
    if workload.has_layers:
        limits = replace(session.limits(), seconds=max(0.25 * session.seconds, 60.0))
        searched = replace(layout, groups=_searched(inspected))
        probed = session.run(Probe(workload=workload, layout=searched, device=request.device, limits=limits))
        if isinstance(probed, Failed):
            session.say(f"no sensitivities: {probed.reason}", "warning")
        else:
            costs = probed.value
            layout = layout.with_sensitivities(costs.sensitivity)
    plan = Plan(
        layout=layout,
        offers=inspected.offers,
        runtime=inspected.runtime,
        unavailable=inspected.unavailable,
        train_rows=workload.train.rows if workload.train else 0,
        train_seconds_per_row=costs.train_seconds_per_row,
        forward_seconds_per_row=costs.forward_seconds_per_row,
        train_starts_per_row=costs.train_starts_per_row,
    )
    return affordable(plan, session.left())


def asked(inspected: Inspected, take: Collection[str], leave: Collection[str]) -> Inspected:
    """Without the techniques in `leave`, and without those that are off by default unless they are in `take`.

    What is in `take` gets known-good strengths where it has none, so that presets have it.
    """
    if refused := [name for name in take if name in inspected.unavailable]:
        raise BadInput(
            f"{refused[0]} was asked for and does not apply: {inspected.unavailable[refused[0]]}",
            f"leave out --with {refused[0]}",
        )
    reasons = {o.technique: f"off unless asked for (--with {o.technique}): {o.off}" for o in inspected.offers if o.off}
    reasons = {name: why for name, why in reasons.items() if name not in take}
    reasons |= {o.technique: f"left out (--without {o.technique})" for o in inspected.offers if o.technique in leave}
    offers = tuple(
        _laddered(offer) if offer.technique in take else offer
        for offer in inspected.offers
        if offer.technique not in reasons
    )
    return replace(inspected, offers=offers, unavailable=inspected.unavailable | reasons)


def _laddered(offer: Offer) -> Offer:
    knobs = {
        name: replace(knob, ladder=tuple(knob.low + share * (knob.high - knob.low) for share in _STRENGTHS))
        if knob.strength and not knob.ladder
        else knob
        for name, knob in offer.knobs.items()
    }
    return replace(offer, knobs=knobs)


def _searched(inspected: Inspected) -> tuple[Group, ...]:
    """The groups that some technique on offer acts on."""
    kinds = {knob.per for offer in inspected.offers for knob in offer.knobs.values()}
    return tuple(group for group in inspected.layout.groups if group.kind in kinds)


def affordable(plan: Plan, seconds: float) -> Plan:
    """Leave out what cannot fit: shrinking, where even the smallest network trains too slowly for the time left.

    What presets do not shrink is taken to train in half of the original's time.
    """
    per_epoch = plan.train_rows * (plan.train_seconds_per_row or 0.0)
    teacher = plan.train_rows * plan.forward_seconds_per_row
    trains = plan.train_seconds_per_row is not None
    encoding = Encoding(plan, CostModel(plan, fixed=0.0), seed=0)
    smallest = encoding.decode(encoding.presets()[-1], allowance=1.0)
    training = min(_EPOCHS * encoding.cost.epoch_seconds(smallest), 0.5 * per_epoch)
    if trains and teacher + training <= _SHARE * seconds:
        return plan
    why = (
        f"an epoch of training the original takes about {per_epoch:.0f} s here, too long for the {seconds:.0f} s left: "
        "give it more --time"
        if trains
        else "there is nothing to train on, and a shrunk model needs recovery training"
    )
    dropped = (Phase.SHRINK, Phase.RECOVER)
    unavailable = plan.unavailable | {o.technique: why for o in plan.offers if o.phase in dropped}
    return replace(plan, offers=_without(plan.offers, dropped), unavailable=unavailable, unshrunk=why)


def _without(offers: tuple[Offer, ...], phases: tuple[Phase, ...]) -> tuple[Offer, ...]:
    return tuple(offer for offer in offers if offer.phase not in phases)
