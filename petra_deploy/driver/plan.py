"""The plan of a search: what the model is made of, what may be done to it, and what that costs."""

from dataclasses import replace

from petra_deploy.core.job import Inspect, Probe
from petra_deploy.core.outcome import Failed
from petra_deploy.core.plan import Inspected, Offer, Phase, Plan
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Workload
from petra_deploy.driver.session import Session

_EPOCHS = 1.0  # fewer epochs of recovery than this in a tenth of the time: shrinking is not asked


def make_plan(workload: Workload, target: Target, device: str, session: Session) -> Plan:
    """Inspect, then probe; what cannot be probed is searched without sensitivities, and said."""
    inspected: Inspected = session.must(Inspect(workload=workload, target=target, limits=session.limits()))
    layout, rate, forward = inspected.layout, None, 0.0
    if workload.has_layers:
        limits = replace(session.limits(), seconds=max(0.25 * session.seconds, 60.0))
        probed = session.run(Probe(workload=workload, layout=layout, device=device, limits=limits))
        if isinstance(probed, Failed):
            session.say(f"no sensitivities: {probed.reason}", "warning")
        else:
            layout = layout.with_sensitivities(probed.value.sensitivity)
            rate, forward = probed.value.train_seconds_per_row, probed.value.forward_seconds_per_row
    plan = Plan(
        layout=layout,
        offers=inspected.offers,
        runtime=inspected.runtime,
        unavailable=inspected.unavailable,
        train_rows=workload.train.rows if workload.train else 0,
        train_seconds_per_row=rate,
        forward_seconds_per_row=forward,
    )
    return affordable(plan, session.left())


def affordable(plan: Plan, seconds: float) -> Plan:
    """Leave out what cannot fit: shrinking, where its recovery training is too slow for the time left.

    Half an epoch's worth of the original is taken as what an epoch of a shrunk network costs.
    """
    per_epoch = plan.train_rows * (plan.train_seconds_per_row or 0.0)
    teacher = plan.train_rows * plan.forward_seconds_per_row
    trains = plan.train_seconds_per_row is not None
    if trains and teacher + _EPOCHS * 0.5 * per_epoch <= 0.25 * seconds:
        return plan
    why = (
        f"an epoch of training takes about {per_epoch:.0f} s here, too long for the {seconds:.0f} s left: "
        "give it more --time"
        if trains
        else "there is nothing to train on, and a shrunk model needs recovery training"
    )
    dropped = (Phase.SHRINK, Phase.RECOVER)
    unavailable = plan.unavailable | {o.technique: why for o in plan.offers if o.phase in dropped}
    return replace(plan, offers=_without(plan.offers, dropped), unavailable=unavailable)


def _without(offers: tuple[Offer, ...], phases: tuple[Phase, ...]) -> tuple[Offer, ...]:
    return tuple(offer for offer in offers if offer.phase not in phases)
