"""--certify: on which processors the accuracy of what is about to ship holds.

    refuse_elsewhere(place.target)                   # before anything is done
    shipment = certified(shipment, session)          # its manifest then says where, and why not elsewhere

What can fall beyond the measured drop is what the budget leaves. Where the job fails the bundle ships
all the same, with the reason among its notes.
"""

from dataclasses import replace

from petra_deploy.core import machine
from petra_deploy.core.errors import BadInput
from petra_deploy.core.job import Certify, Limits
from petra_deploy.core.outcome import Failed
from petra_deploy.core.target import Target
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.session import Session

_SECONDS = 300.0  # that it may take at least; the budget may be used up by now


def refuse_elsewhere(target: Target) -> None:
    """Raises BadInput for a target that is no processor."""
    if target.device != "cpu":
        raise BadInput(f"--certify compares processors, and {target.name} is not one", "leave out --certify")


def certified(shipment: Shipment, session: Session) -> Shipment:
    """`shipment` with its certificate, or with a note on why there is none."""
    session.say("certifying: 8-bit sums as other processors compute them")
    there = shipment.measurement.machine.get("instructions")  # it may have been measured on another machine
    drop = 0.0 if shipment.score.drop is None else shipment.score.drop.known()
    done = session.run(
        Certify(
            engine=shipment.engine,
            split=shipment.workload.calibration,
            metric=shipment.workload.metric,
            instructions=tuple(there) if isinstance(there, list | tuple) else machine.instructions(),
            allowed_points=max(shipment.goal.max_drop - drop, 0.0),
            limits=Limits(seconds=max(session.left(), _SECONDS)),
        )
    )
    if isinstance(done, Failed):
        note = f"not certified: {done.reason}"
        session.say(note, "warning")
        return replace(shipment, notes=(*shipment.notes, note))
    return replace(shipment, certified=done.value)
