import pytest

from petra_deploy.core import cpus
from petra_deploy.core.machine import resolve


@pytest.mark.parametrize(
    ("target", "kind"),
    [("cpu-avx2", "avx2"), ("cpu-avx512", "avx512"), ("cpu-vnni", "vnni"), ("cpu-amx", "amx"), ("cpu-arm64", "arm64")],
)
def test_a_shipped_target_is_a_kind_and_saturates_as_its_kind_does(target: str, kind: str) -> None:
    found = resolve(target)
    assert cpus.kind(found.instructions) == kind
    assert found.saturates == (kind in cpus.SATURATING)
    assert kind in cpus.alike(kind)


def test_a_processor_of_no_kind_is_like_none_and_is_not_doubted() -> None:
    assert cpus.kind(()) is None
    assert cpus.alike(None) == ()
    assert cpus.doubt(("avx2",), (), certified=True) is None


def test_doubt_names_this_processor_and_those_where_it_holds() -> None:
    said = cpus.doubt(cpus.EXACT, ("avx2", "avx512"), certified=True)
    assert said is not None
    assert "found not to hold on this processor (avx512): it holds on vnni, amx, arm64" in said
    assert "is not known to hold" in str(cpus.doubt(cpus.EXACT, ("avx2",), certified=False))
    assert cpus.doubt(cpus.EXACT, ("avx2", "avx512", "vnni"), certified=False) is None
    assert cpus.doubt((), ("avx2",), certified=False) is None
