from dataclasses import replace

from petra_deploy.core.plan import Group, Inspected, Knob, Offer, Phase
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.report.inspection import text


def test_it_says_what_applies_and_why_the_rest_does_not(shipment: Shipment) -> None:
    offer = Offer(
        technique="prune", phase=Phase.SHRINK, acts_on="module", knobs={"ratio": Knob.real(0, 1, per="channels")}
    )
    encoder = Group(name="layers", kind="encoder", width=8, parameters=9, macs=9)  # takes prompts; nothing shrinks it
    layout = replace(shipment.layout, groups=(*shipment.layout.groups, encoder))
    inspected = Inspected(layout=layout, offers=(offer,), unavailable={"low_rank": "no layer is large enough"})
    said = text(shipment.workload, inspected, "cpu").splitlines()
    assert "parameters  24 (96 bytes)" in said
    assert "inputs      image: float32[batch, 1, 8], kind: int64[batch]" in said
    assert "  channels  body: 3 wide, 24 parameters, 24 MACs" in said
    assert "1 groups can shrink" in said
    assert not any("layers" in line and "wide" in line for line in said)
    assert "  prune: ratio" in said
    assert "  low_rank: no layer is large enough" in said
    assert "note: few rows" in said
