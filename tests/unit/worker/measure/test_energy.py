"""Energy counters, in a powercap tree of the test's own."""

import ctypes
from pathlib import Path

import pytest

from petra_deploy.worker.measure import energy, preflight


def domain(root: Path, folder: str, name: str, microjoules: int | None = 0, range_: int = 1_000_000_000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{range_}\n")
    if microjoules is not None:
        (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_what_is_inside_or_shown_twice_is_not(tmp_path: Path) -> None:
    counters = [domain(tmp_path, f"intel-rapl:{n}", f"package-{n}", 5_000_000) for n in range(2)]
    domain(tmp_path, "intel-rapl:0:0", "core", 1)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    domain(tmp_path, "intel-rapl:2", "psys", 1)
    meter, what = energy.find("cpu", tmp_path)
    assert meter is not None
    before = meter.read()
    counters[0].write_text("7000000\n")
    counters[1].write_text("5500000\n")
    assert meter.joules(before) == 2.5
    assert what == "RAPL, package-0, package-1"


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000, range_=262_143_328_850)
    meter, _ = energy.find("cpu", tmp_path)
    assert meter is not None
    before = meter.read()
    counter.write_text("1671150\n")
    assert meter.joules(before) == pytest.approx(2.0)


def test_what_is_absent_or_cannot_be_read_is_no_figure_but_a_sentence(tmp_path: Path) -> None:
    assert energy.find("cpu", tmp_path / "nowhere") == (
        None, f"energy is not known: this machine shows no RAPL counters in {tmp_path / 'nowhere'}"
    )  # fmt: skip
    domain(tmp_path, "intel-rapl:0", "package-0", None)
    meter, why = energy.find("cpu", tmp_path)
    assert meter is None
    assert "cannot be read; as root, chmod a+r it" in why


def test_without_a_driver_a_gpu_has_no_meter() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        meter, why = energy.find("cuda")
        assert meter is None
        assert "libcuda.so.1" in why
    else:
        meter, _ = energy.find("cuda")
        assert meter is None or meter.joules(meter.read()) >= 0


def test_throttling_is_counted_and_said(tmp_path: Path) -> None:
    counters = [tmp_path / f"cpu{n}" / "thermal_throttle" / "core_throttle_count" for n in range(2)]
    for counter in counters:
        counter.parent.mkdir(parents=True)
        counter.write_text("3\n")
    before = {**preflight.state(cpus=tmp_path), "load": 0.0, "governor": "performance", "steal_jiffies": 0}
    assert before["throttles"] == 6
    counters[1].write_text("8\n")
    after = {**before, **{"throttles": preflight.state(cpus=tmp_path)["throttles"]}}
    assert [line for line in preflight.warnings(before, after) if "throttled itself 5 times" in line]


def test_what_others_took_of_our_core_is_told_from_what_we_took() -> None:
    before = {"load": 0.0, "governor": "performance", "clock": 100.0, "busy": 50.0, "own": 7.0}
    (said,) = preflight.warnings(before, {**before, "clock": 110.0, "busy": 59.0, "own": 13.0})
    assert "other programs took 30% of the time of the core" in said
    assert preflight.warnings(before, {**before, "clock": 110.0, "busy": 59.0, "own": 16.0}) == []


def test_the_state_of_a_core_holds_our_own_time() -> None:
    with preflight.pinned(1) as core:
        before = preflight.state(core)
        sum(range(3_000_000))
        after = preflight.state(core)
    if "own" not in before:
        pytest.skip("this system has no /proc/stat")
    assert after["own"] > before["own"]  # type: ignore[operator]
    assert after["busy"] >= before["busy"]  # type: ignore[operator]
