import pytest

from petra_deploy.core import cpus
from petra_deploy.core.errors import BadInput
from petra_deploy.core.job import Certify
from petra_deploy.core.outcome import Failed
from petra_deploy.core.store import Store
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.certify import certified, refuse_elsewhere
from petra_deploy.driver.place import find
from petra_deploy.testing.inline import Inline


class Here:
    """The part of a session that certifying takes: jobs run in this process."""

    def __init__(self, store: Store) -> None:
        self.run, self.said = Inline(store), []  # type: ignore[var-annotated]

    def say(self, text: str, kind: str = "stage") -> None:
        self.said.append((kind, text))

    def left(self) -> float:
        return 1.0


def test_a_float_engine_ships_with_a_certificate_for_all(shipment: Shipment, store: Store) -> None:
    made = certified(shipment, Here(store))  # type: ignore[arg-type]
    assert made.certified is not None
    assert made.certified.holds_on == cpus.CPUS
    assert made.certified.allowed_points == 0.0  # a point was allowed, and it was lost


def test_what_cannot_be_certified_ships_with_the_reason(shipment: Shipment, store: Store) -> None:
    here = Here(store)

    def fails(job: Certify) -> Failed:
        return Failed(job="certify", kind="unsupported", reason="only ONNX Runtime's sums are known")

    here.run = fails  # type: ignore[assignment]
    made = certified(shipment, here)  # type: ignore[arg-type]
    assert made.certified is None
    assert made.notes[-1] == "not certified: only ONNX Runtime's sums are known"
    assert here.said[-1] == ("warning", made.notes[-1])


def test_a_gpu_is_refused_before_anything_is_done() -> None:
    with pytest.raises(BadInput, match="t4 is not one"):
        refuse_elsewhere(find("t4").target)
    refuse_elsewhere(find("cpu").target)
