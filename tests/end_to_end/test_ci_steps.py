"""The steps of the GitHub action and the jobs of the GitLab template, run by bash on a small real model.

Not run here: actions/cache and its kind, pip, and `gh`, for which a script of a few lines stands in.
"""

import json
import shutil
import sys
import threading
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.ci_files import bash, run_job, run_step, with_command

APART = {"train": "few.npz", "selection": "selection.npz", "test": "test.npz"}
SMALL = "--batch\n1\n--runtime\nonnxruntime"
FEW_ROWS = {"data": "few.npz", "fail-drop-above": "0.01"}  # 200 rows know no drop to a hundredth of a point
WORKLOAD = {"model": "model.pt", "model-factory": "net.py:build"}

QUIET = {"PETRA_REQUIREMENT": "", "PETRA_COMMENT": "true"}
MODEL = {"PETRA_MODEL": "model.pt", "PETRA_MODEL_FACTORY": "net.py:build", "PETRA_MAX_DROP": "50",
         "PETRA_OPTIONS": f"--train\nfew.npz\n--selection\nselection.npz\n--test\ntest.npz\n{SMALL}"}  # fmt: skip


@pytest.fixture(scope="module")
def runner(place, tmp_path_factory):
    """A checkout with the user's files, and the environment of a job there."""
    folder = tmp_path_factory.mktemp("checkout with a space")
    for file in place.folder.iterdir():
        if file.suffix in (".py", ".pt", ".npz"):
            shutil.copy(file, folder)
    return folder, with_command(folder, place.environment(), sys.executable)


def key(inputs, folder, environment):
    ran = run_step("key", inputs, folder, environment)
    assert ran.code == 0, ran.out
    return {"steps.key.outputs.key": ran.outputs["key"]}


@pytest.fixture(scope="module")
def made(runner):
    """What the step `optimize` did."""
    folder, environment = runner
    inputs = {"command": "optimize", **WORKLOAD, **APART, "trials": "1", "time": "60s", "options": SMALL}
    return run_step("run", inputs, folder, environment, key(inputs, folder, environment)), inputs


@pytest.fixture(scope="module")
def engines(runner, made):
    """The checkout, with the FP32 engine as `base` and the bundle that is faster as `new`."""
    folder, environment = runner
    assert made[0].code == 0, made[0].out
    bundle = Path(made[0].outputs["bundle"])
    shutil.copytree(bundle.parent / "baseline", folder / "base")
    shutil.copytree(bundle, folder / "new")
    return folder, environment


class TestGitHub:
    def test_optimize_gives_a_bundle_and_shows_the_table(self, runner, made):
        ran, _ = made
        assert ran.code == 0, ran.out
        folder, environment = runner
        assert ran.outputs["bundle"].startswith(str(folder / "petra-out/ci/runs"))
        assert bash(f'petra-deploy verify "{ran.outputs["bundle"]}"', folder, environment).code == 0
        assert "### petra-deploy optimize" in ran.summary
        assert "latency p50" in ran.summary
        assert any((folder / "petra-out/ci/store").iterdir())

    def test_optimize_goes_on_with_the_run_that_the_cache_brought_back(self, runner, made):
        folder, environment = runner
        first, inputs = made
        ran = run_step("run", inputs, folder, environment, key(inputs, folder, environment))
        assert ran.code == 0, ran.out
        assert ran.outputs["bundle"] == first.outputs["bundle"]
        assert "trial 1 of" not in ran.out

    def test_apply_takes_the_strategy_and_makes_way_for_itself(self, runner, made):
        folder, environment = runner
        strategy = f"{made[0].outputs['bundle']}/strategy.json"
        inputs = {"command": "apply", "strategy": strategy, **WORKLOAD, **APART, "max-drop": "50", "options": SMALL}
        known = key(inputs, folder, environment)
        shutil.copytree(Path(strategy).parent.parent, folder / "petra-out/ci/runs" / known["steps.key.outputs.key"])
        ran = run_step("run", inputs, folder, environment, known)
        assert ran.code in (0, 1), ran.out  # 1: so small a run may not hold its speedup on a busy machine
        assert "applying" in ran.out
        assert ("chosen" in ran.summary) or ran.code == 1

    @pytest.mark.parametrize(
        ("swapped", "more", "code", "verdict"),
        [
            (False, {}, 0, "pass"),
            (True, {"fail-above": "10%"}, 1, "fail"),
            (False, FEW_ROWS, 0, "inconclusive"),
            (False, {**FEW_ROWS, "strict": "true"}, 1, "inconclusive"),
            (False, {"new": "nowhere"}, 2, "error"),
        ],
    )
    def test_compare_says_what_came_out(self, engines, swapped, more, code, verdict):
        folder, environment = engines
        base, new = ("new", "base") if swapped else ("base", "new")
        inputs = {"command": "compare", "base": base, "new": new, "fail-size-above": "2000%", **more}
        ran = run_step("run", inputs, folder, environment, key(inputs, folder, environment))
        assert (ran.code, ran.outputs["verdict"]) == (code, verdict), ran.out
        assert ("::warning" in ran.out) == (verdict == "inconclusive")
        report = folder / "petra-out/ci/report/compare"
        assert ran.outputs["report"] == str(report)
        assert ran.summary == (report / "report.md").read_text()
        if verdict != "error":
            gates = ElementTree.parse(report / "junit.xml").getroot().iter("testcase")
            assert len(list(gates)) == (3 if "data" in more else 2)
            assert {one["verdict"] for one in json.loads((report / "comparison.json").read_text())["verdicts"]} >= {
                verdict
            }

    def test_bench_gives_a_profile(self, engines):
        folder, environment = engines
        inputs = {"command": "bench", "model": "new", "time": "10s", "target": "cpu", "data": "few.npz"}
        ran = run_step("run", inputs, folder, environment, key(inputs, folder, environment))
        assert ran.code == 0, ran.out
        with open(ran.outputs["profile"]) as file:
            assert json.load(file)["schema"].startswith("petra-deploy/profile/")
        assert "### petra-deploy bench" in ran.summary

    def test_an_unknown_command_is_refused(self, runner):
        folder, environment = runner
        ran = run_step("run", {"command": "deploy"}, folder, environment, {"steps.key.outputs.key": "k"})
        assert ran.code == 2
        assert "::error" in ran.out

    def test_what_is_given_is_text_and_never_run(self, runner):
        folder, environment = runner
        hostile = '$(touch ran) `touch ran` "; touch ran; #'
        inputs = {"command": "compare", "base": hostile, "new": hostile, "options": f"--input\n{hostile}", "name": "h"}
        ran = run_step("run", inputs, folder, environment, {"steps.key.outputs.key": "k"})
        assert ran.code == 2
        assert ran.outputs["verdict"] == "error"
        assert not (folder / "ran").exists()

    def test_the_key_is_of_what_a_run_depends_on(self, runner):
        folder, environment = runner
        inputs = {"command": "optimize", **WORKLOAD, "data": "few.npz"}
        first = key(inputs, folder, environment)
        assert key({**inputs, "token": "another"}, folder, environment) == first
        assert key({**inputs, "time": "5m"}, folder, environment) != first
        before = (folder / "net.py").read_text()
        (folder / "net.py").write_text(before + "\n# changed\n")
        assert key(inputs, folder, environment) != first
        (folder / "net.py").write_text(before)
        assert key(inputs, folder, environment) == first

    def test_a_comment_is_written_once_and_then_over(self, runner, tmp_path):
        _, environment = runner
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "gh").write_text(GH)
        (programs / "gh").chmod(0o755)
        (tmp_path / "report.md").write_text("### petra-deploy: pass\n")
        environment = {**environment, "PATH": f"{programs}:{environment['PATH']}", "COMMENTS": str(tmp_path)}
        known = {"github.event.pull_request.number": "7", "steps.run.outputs.report": str(tmp_path)}

        def comment():
            ran = run_step("comment", {"command": "compare", "name": "cpu", "token": "t"}, tmp_path, environment, known)
            assert ran.code == 0, ran.out
            return ran

        comment()
        assert (tmp_path / "1.txt").read_text() == "<!-- petra-deploy compare cpu -->\n### petra-deploy: pass\n"
        (tmp_path / "report.md").write_text("### petra-deploy: fail\n")
        comment()
        assert (tmp_path / "1.txt").read_text().endswith("fail\n")
        assert not (tmp_path / "2.txt").exists()
        (tmp_path / "refuse").touch()
        assert "::warning" in comment().out


GH = """#!/bin/bash
# Comments are files of the folder COMMENTS, 1.txt and so on.
[ ! -e "$COMMENTS/refuse" ] || { echo 'HTTP 403: Resource not accessible by integration' >&2; exit 1; }
case "$1 $2" in
  "api --paginate")
    [ "$3" = repos/someone/something/issues/7/comments ] || exit 9
    if [ -e "$COMMENTS/1.txt" ]; then echo "1 $(head -n 1 "$COMMENTS/1.txt")"; fi ;;
  "api --method")
    [ "$3 $4 $5" = "PATCH repos/someone/something/issues/comments/1 -F" ] || exit 9
    cp "${6#body=@}" "$COMMENTS/1.txt" ;;
  "pr comment")
    [ "$3 $4 $5 $6" = "7 --repo someone/something --body-file" ] || exit 9
    cp "$7" "$COMMENTS/$(($(find "$COMMENTS" -name '?.txt' | wc -l) + 1)).txt" ;;
  *) exit 9 ;;
esac
"""


class TestGitLab:
    def test_nothing_is_installed_where_the_image_brings_it(self, runner):
        folder, environment = runner
        assert run_job(".petra-deploy:bench", QUIET, folder, environment, "before_script").code == 0

    def test_optimize_leaves_a_bundle_and_lets_other_runs_go(self, runner):
        folder, environment = runner
        (folder / "petra-out/ci/runs/of-another-model").mkdir(parents=True)
        told = {**QUIET, **MODEL, "PETRA_TRIALS": "1", "PETRA_TIME": "60s"}
        ran = run_job(".petra-deploy:optimize", told, folder, environment)
        assert ran.code == 0, ran.out
        assert (folder / "petra-out/ci/bundle/manifest.json").is_file()
        assert not (folder / "petra-out/ci/runs/of-another-model").exists()
        assert "latency p50" in (folder / "petra-out/ci/report/report.md").read_text()

    def test_apply_leaves_a_bundle(self, engines):
        folder, environment = engines
        told = {**QUIET, **MODEL, "PETRA_STRATEGY": "new/strategy.json"}
        ran = run_job(".petra-deploy:apply", told, folder, environment)
        assert ran.code in (0, 1), ran.out  # 1: so small a run may not hold its speedup on a busy machine
        assert (folder / "petra-out/ci/bundle/manifest.json").exists() == (ran.code == 0)
        assert "applying" in ran.out

    @pytest.mark.parametrize(
        ("base", "new", "more", "code"),
        [
            ("base", "new", {}, 0),
            ("new", "base", {"PETRA_FAIL_ABOVE": "10%"}, 1),
            ("base", "new", {"PETRA_DATA": "few.npz", "PETRA_FAIL_DROP_ABOVE": "0.01"}, 64),
            ("base", "nowhere", {}, 2),
        ],
    )
    def test_compare_ends_with_the_code_that_the_template_allows(self, engines, base, new, more, code):
        folder, environment = engines
        told = {**QUIET, "PETRA_BASE": base, "PETRA_NEW": new, **more}
        ran = run_job(".petra-deploy:compare", told, folder, environment)
        assert ran.code == code, ran.out
        assert (folder / "petra-out/ci/report/report.md").read_text()
        assert (folder / "petra-out/ci/report/junit.xml").exists() == (code != 2)

    def test_bench_leaves_a_profile(self, engines):
        folder, environment = engines
        told = {**QUIET, "PETRA_MODEL": "new", "PETRA_TIME": "10s"}
        ran = run_job(".petra-deploy:bench", told, folder, environment)
        assert ran.code == 0, ran.out
        assert (folder / "petra-out/ci/report/profile.json").is_file()

    def test_the_note_is_written_once_and_then_over(self, runner, tmp_path):
        _, environment = runner
        report = tmp_path / "petra-out/ci/report"
        report.mkdir(parents=True)
        (report / "report.md").write_text("✅ pass")
        with notes() as (url, kept):
            told = {"CI_API_V4_URL": url, "CI_PROJECT_ID": "12", "CI_MERGE_REQUEST_IID": "3", "PETRA_TOKEN": "secret"}
            for text in ("✅ pass", "❌ fail"):
                (report / "report.md").write_text(text)
                ran = run_job(".petra-deploy:compare", {**QUIET, **told}, tmp_path, environment, "after_script")
                assert ran.code == 0, ran.out
            assert list(kept.values())[150:] == ["<!-- petra-deploy petra-deploy:compare -->\n❌ fail"]
            del told["PETRA_TOKEN"]
            ran = run_job(".petra-deploy:compare", {**QUIET, **told}, tmp_path, environment, "after_script")
            assert ran.code == 0
            assert "PETRA_TOKEN" in ran.out
            assert len(kept) == 151


class notes:
    """GitLab's notes of a merge request, over HTTP: 150 of other people, and those that are written."""

    def __enter__(self):
        kept = {number: f"comment {number}" for number in range(1, 151)}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                page = int(self.path.rpartition("page=")[2])
                shown = list(kept.items())[(page - 1) * 100 : page * 100]
                more = str(page + 1) if page * 100 < len(kept) else ""
                self.answer([{"id": number, "body": body} for number, body in shown], more)

            def do_POST(self):
                kept[len(kept) + 1] = self.body()
                self.answer({}, "")

            def do_PUT(self):
                kept[int(self.path.rpartition("/")[2])] = self.body()
                self.answer({}, "")

            def body(self):
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]

            def answer(self, value, more):
                good = self.headers["PRIVATE-TOKEN"] == "secret"
                good = good and self.path.startswith("/projects/12/merge_requests/3/notes")
                self.send_response(200 if good else 401)
                self.send_header("X-Next-Page", more)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}", kept

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
