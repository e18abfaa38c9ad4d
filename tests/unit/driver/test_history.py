"""Change points of stored profiles: planted ones are found where they are, machines are kept apart, noise is quiet."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import Benched, EngineFacts, Profile, Scenario, Tail
from petra_deploy.driver import profiles
from petra_deploy.driver.history import FEWEST, History, Series, history, read, trace
from petra_deploy.driver.report.history import text

MACHINE = {"cpu": "EPYC", "cores": 2, "instructions": ["avx2"], "governor": "performance", "system": "Linux 6"}
SINGLE = "single-stream, batch 1, 1 thread"


def ms(value: float | None, note: str = "") -> Figure:
    return Figure(value=value, unit="ms", n=100, note=note)


def made(
    day: int, p50: float, *, yardstick: float = 2.0, p99: float | None = None, machine: dict[str, object] = MACHINE,
    versions: dict[str, str] | None = None, sha256: str = "a",
) -> Profile:  # fmt: skip
    """A profile of one scenario; `p50` and `yardstick` in ms."""
    calls = {"engine": {"hot_ns": [p50 * 1e6] * 3}, "yardstick": {"hot_ns": [yardstick * 1e6] * 3}}
    tail = Tail(p50=ms(p50), p90=ms(p50), p95=ms(p50), p99=ms(p99, "needs 459"), p999=ms(None, "needs 4603"))
    scenario = Scenario(name="single-stream", batch=1, threads=1, rounds=(calls,), latency=tail,
                        throughput=Figure(value=1e3 / p50, unit="1/s"))  # fmt: skip
    measured = Benched(scenarios=(scenario,), machine=machine, peak_memory=Figure(value=5e7, unit="bytes"))
    return Profile(
        created=f"{datetime(2026, 1, 1) + timedelta(days=day):%Y-%m-%dT%H:%M:%SZ}", target="cpu", measured=measured,
        engine=EngineFacts(name="net", file="net.onnx", sha256=sha256, bytes=10, runtime="onnxruntime",
                           versions=versions or {"onnxruntime": "1.31.0"}),
    )  # fmt: skip


def noise(seed: int, count: int) -> list[float]:
    """p50s about 1 ms with a standard deviation of 2%."""
    return [float(x) for x in np.exp(np.random.default_rng(seed).normal(0, 0.02, count))]


def traced(several: list[Profile]) -> History:
    return history([(Path(f"{index}.json"), profile) for index, profile in enumerate(several)])


def one(found: History, what: str) -> Series:
    (series,) = (series for series in found.series if series.what == what)
    return series


def write(folder: Path, several: list[Profile]) -> None:
    for index, profile in enumerate(several):
        profiles.write(folder / f"{index}.json", profile)


class TestWithOtava:
    @pytest.fixture(autouse=True)
    def otava(self) -> None:
        pytest.importorskip("otava.analysis", reason="Apache Otava is not installed; .ci/run installs it")

    @pytest.mark.parametrize("at", [5, 12, 20])
    def test_a_step_of_a_tenth_is_found_where_it_was_planted(self, at: int) -> None:
        p50s = [value * (1.1 if day >= at else 1.0) for day, value in enumerate(noise(at, 24))]
        series = one(traced([made(day, p50) for day, p50 in enumerate(p50s)]), f"{SINGLE}: p50")
        (change,) = series.changes
        assert abs(int(change.file.removesuffix(".json")) - at) <= 1
        assert change.created == made(int(change.file.removesuffix(".json")), 1).created
        assert change.change == pytest.approx(0.1, abs=0.03)
        assert change.after.known() == pytest.approx(change.before.known() * (1 + change.change))
        assert change.before.n + change.after.n == series.count == 24
        assert change.p <= 0.001

    def test_noise_alone_seldom_passes(self) -> None:
        """Measured 1% to 2% of series at these lengths (docs/history.md); 12 of 200 would be far beyond chance."""
        alarms = 0
        for seed in range(200):
            found = traced([made(day, p50) for day, p50 in enumerate(noise(seed, FEWEST + seed % 40))])
            alarms += bool(one(found, f"{SINGLE}: p50").changes)
        assert alarms < 12

    def test_what_moves_the_whole_machine_does_not_move_the_ratio_to_the_yardstick(self) -> None:
        slow = [1.0 if day < 10 else 1.3 for day in range(20)]
        found = traced([made(day, p50 * s, yardstick=2 * s) for day, (p50, s) in
                        enumerate(zip(noise(3, 20), slow, strict=True))])  # fmt: skip
        assert len(one(found, f"{SINGLE}: p50").changes) == 1
        ratio = one(found, f"{SINGLE}: p50 / yardstick")
        assert ratio.changes == ()
        assert ratio.value.known() == pytest.approx(0.5, abs=0.05)

    def test_two_changes_have_the_mean_between_them(self) -> None:
        levels = [1.0] * 10 + [1.2] * 10 + [1.0] * 10
        p50s = [value * level for value, level in zip(noise(5, 30), levels, strict=True)]
        first, second = one(traced([made(d, p50) for d, p50 in enumerate(p50s)]), f"{SINGLE}: p50").changes
        assert (first.file, second.file) == ("10.json", "20.json")
        assert first.after == second.before
        assert second.change < 0

    def test_profiles_of_different_machines_runtimes_and_threads_are_never_one_series(self) -> None:
        machines: list[dict[str, object]] = [
            {}, {"cpu": "Xeon"}, {"cores": 4}, {"instructions": ["avx2", "vnni"]}, {}, {}, {},
        ]  # fmt: skip
        several = [made(day, 1, machine={**MACHINE, **differs}) for day, differs in enumerate(machines)]
        several[4] = replace(several[4], engine=replace(several[4].engine, runtime="openvino"))
        several[5] = replace(several[5], target="mine")
        scenarios = tuple(replace(s, threads=2) for s in several[6].measured.scenarios)
        several[6] = replace(several[6], measured=replace(several[6].measured, scenarios=scenarios))
        assert [s.count for s in traced(several).series if s.what.endswith(": p50")] == [1] * 7

    def test_too_few_profiles_say_how_many_it_takes(self) -> None:
        few = [made(day, 1 + day) for day in range(FEWEST - 1)]
        assert one(traced(few), f"{SINGLE}: p50").needs == FEWEST
        assert one(traced([*few, made(FEWEST, 9)]), f"{SINGLE}: p50").needs == 0
        assert f"needs {FEWEST} profiles" in text(traced(few))

    def test_figures_that_never_change_are_no_change_and_a_jump_between_two_of_them_is(self) -> None:
        flat = traced([made(day, 1.0) for day in range(20)])
        assert all(series.changes == () for series in flat.series)
        (change,) = one(traced([made(d, 1.0 if d < 9 else 1.1) for d in range(20)]), f"{SINGLE}: p50").changes
        assert change.file == "9.json"

    def test_a_server_is_followed_by_its_rate_under_the_limit_that_was_asked_for(self) -> None:
        def served(day: int, **settings: object) -> Profile:
            profile = made(day, 1.0)
            (single,) = profile.measured.scenarios
            server = replace(single, name="server", settings=settings)
            return replace(profile, measured=replace(profile.measured, scenarios=(server,)))

        found = traced([served(0, limit_ms=10.0, limit="given"), served(1, limit_ms=0.41, limit="5 x p50"),
                        served(2, limit_ms=0.39, limit="5 x p50")])  # fmt: skip
        where = "server, batch 1, 1 thread, under "
        counts = {series.what: series.count for series in found.series if series.what.startswith("server")}
        assert counts == {f"{where}10.0 ms: throughput": 1, f"{where}5 x p50: throughput": 2}

    def test_a_figure_without_a_value_is_no_point(self) -> None:
        found = traced([made(day, 1.0, p99=1.5 if day % 2 else None) for day in range(20)])
        assert one(found, f"{SINGLE}: p99").count == 10

    def test_the_text_says_what_when_by_how_much_and_what_came_with_it(self) -> None:
        several = [made(day, p50) for day, p50 in enumerate(noise(1, 20))]
        several[12:] = [made(day, p50 * 1.1, sha256="b", versions={"onnxruntime": "1.32.0"})
                        for day, p50 in zip(range(12, 20), noise(2, 8), strict=True)]  # fmt: skip
        said = text(traced(several))
        assert "net on cpu; EPYC, 2 cores, avx2, onnxruntime" in said
        line = next(line for line in said.splitlines() if line.strip().startswith(f"{SINGLE}: p50: "))
        assert "2026-01-13T00:00:00Z (12.json)" in line
        assert "worse" in line
        assert "with it: another model.onnx" in said
        assert "with it: onnxruntime 1.31.0 -> 1.32.0" in said
        assert "worse" in next(x for x in said.splitlines() if x.strip().startswith(f"{SINGLE}: throughput: "))

    def test_the_command_reports_and_exits_with_0_also_where_figures_got_worse(self, tmp_path: Path) -> None:
        write(tmp_path / "kept", [made(d, 1.0 if d < 10 else 1.5) for d in range(20)])
        (tmp_path / "kept/ledger.json").write_text('{"schema": "petra-deploy/ledger/1"}')
        done = command("--history", str(tmp_path / "kept"), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["profiles"] == 20
        assert list(said["left_out"]) == ["ledger.json"]
        p50 = next(s for s in said["series"] if s["what"] == f"{SINGLE}: p50")
        assert p50["changes"][0]["change"] == pytest.approx(0.5)
        assert "+50.0%, worse" in command("--history", str(tmp_path / "kept")).stdout


def command(*arguments: str, code: str = "") -> "subprocess.CompletedProcess[str]":
    start = f"{code}\nfrom petra_deploy.cli.main import run; sys.exit(run(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", f"import sys\n{start}", "bench", *arguments], capture_output=True,
                          text=True, check=False, env=dict(os.environ))  # fmt: skip


def test_profiles_are_read_by_the_time_of_their_making_and_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, [made(5, 1), made(2, 1), made(9, 1)])
    early = replace(made(0, 1), created="2026-01-04T01:00:00+09:00")  # the third of January, UTC
    profiles.write(tmp_path / "below" / "early.json", early)
    (tmp_path / "future.json").write_text('{"schema": "petra-deploy/profile/99"}')
    (tmp_path / "torn.json").write_text('{"schema": "petra-dep')
    (tmp_path / "list.json").write_text("[1]")
    profiles.write(tmp_path / "undated.json", replace(early, created="last week"))
    found, left_out = read(tmp_path)
    assert [path.name for path, _ in found] == ["1.json", "early.json", "0.json", "2.json"]
    assert set(left_out) == {"future.json", "torn.json", "list.json", "undated.json"}
    assert "version 99" in left_out["future.json"]
    assert "last week" in left_out["undated.json"]


def test_a_folder_without_a_profile_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \.json file"):
        trace(tmp_path)
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(BadInput, match=r"torn\.json.*not valid JSON"):
        trace(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        trace(tmp_path / "nowhere")


def test_without_otava_the_extra_is_named(tmp_path: Path) -> None:
    write(tmp_path, [made(0, 1)])
    done = command("--history", str(tmp_path), code="sys.modules['otava'] = None")
    assert done.returncode == 4
    assert 'pip install "petra-deploy[history]"' in done.stderr


def test_bench_needs_something_to_measure_where_no_history_is_asked_for() -> None:
    done = command()
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
