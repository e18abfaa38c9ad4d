"""What CI is told: scripts that a hostile name cannot enter, options that the command has, docs that name all."""

import re
from pathlib import Path
from typing import Any

import click
import pytest

from petra_deploy.cli.main import cli
from tests.ci_files import ROOT, TEMPLATE, WORKFLOWS, action, gitlab_script, load, loads, steps

DOCUMENTS = [ROOT / "action.yml", *WORKFLOWS]
SCRIPTS = [(path.name, step) for path in DOCUMENTS for step in steps(load(path)) if "run" in step]
JOBS = [name for name in load(TEMPLATE) if name.startswith(".petra-deploy:") and name != ".petra-deploy:begin"]
VERBS = ("optimize", "apply", "bench", "compare")
PAGE = ROOT / "docs" / "ci.md"
_RUNNER = {"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_REPOSITORY", "GITHUB_ACTION_PATH", "PWD"}


def options(verb: str) -> set[str]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return {name for parameter in command.params for name in parameter.opts}


def used(script: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", script))


def function(script: str, name: str) -> str:
    found = re.search(rf"^\s*{name}\(\) \{{$(.*?)^\s*\}}$", script, re.M | re.S)
    assert found, name
    return found[1]


def script_of(verb: str) -> str:
    """What the action's step runs for `verb`: its branch, and what it calls."""
    (run,) = (step["run"] for step in steps(action()) if step.get("id") == "run")
    found = re.search(rf"^  {verb}\)$(.*?);;$", run, re.M | re.S)
    assert found, verb
    called = function(run, "workload") if re.search(r"^\s*workload$", found[1], re.M) else ""
    return found[1] + called + "option --target"


@pytest.mark.parametrize(("file", "step"), SCRIPTS, ids=lambda one: one if isinstance(one, str) else one.get("id", ""))
def test_no_text_of_others_becomes_part_of_a_script(file: str, step: dict[str, Any]) -> None:
    assert "${{" not in step["run"]
    assert step["run"].startswith("set -euo pipefail\n")
    assert step["shell"] == "bash"


@pytest.mark.parametrize(("file", "step"), SCRIPTS, ids=lambda one: one if isinstance(one, str) else one.get("id", ""))
def test_every_variable_of_a_script_is_given_to_it(file: str, step: dict[str, Any]) -> None:
    named = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
    assert named <= step.get("env", {}).keys() | _RUNNER


@pytest.mark.parametrize("verb", VERBS)
def test_the_action_uses_options_that_the_command_has(verb: str) -> None:
    assert len(used(script_of(verb))) >= 4
    assert used(script_of(verb)) <= options(verb)


@pytest.mark.parametrize("job", JOBS)
def test_the_template_uses_options_that_the_command_has(job: str) -> None:
    verb, script = job.rpartition(":")[2], gitlab_script(job)
    assert f'petra-deploy {verb} "${{args[@]}}"' in script
    own = load(TEMPLATE)[job]["script"][-1]
    called = function(script, "workload") if re.search(r"^workload$", own, re.M) else ""
    assert used(own + called) <= options(verb)
    assert script.startswith("set -euo pipefail\n")


def test_every_verb_has_a_job() -> None:
    assert {job.rpartition(":")[2] for job in JOBS} == set(VERBS)


def test_every_input_reaches_a_step() -> None:
    text = (ROOT / "action.yml").read_text()
    for name in action()["inputs"]:
        assert f"inputs.{name} " in text or f"inputs.{name})" in text, name


def test_every_variable_of_the_template_is_used() -> None:
    scripts = "".join(gitlab_script(job, part) for job in JOBS for part in ("before_script", "script", "after_script"))
    for name in load(TEMPLATE)[".petra-deploy"]["variables"]:
        assert name in scripts or name.startswith("PIP_"), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_write_no_more_than_comments_and_uses_our_action_by_its_inputs(path: Path) -> None:
    document = load(path)
    assert document["permissions"]["contents"] == "read"
    assert {key for key, value in document["permissions"].items() if value == "write"} <= {"pull-requests"}
    for step in steps(document):
        if step.get("uses") == "./":
            assert step["with"].keys() <= action()["inputs"].keys()


def test_the_page_names_every_input_and_variable() -> None:
    text = PAGE.read_text()
    for name in (*action()["inputs"], *action()["outputs"], *load(TEMPLATE)[".petra-deploy"]["variables"]):
        assert f"`{name}`" in text, name


def test_what_the_page_shows_is_yaml_that_uses_what_there_is() -> None:
    shown = [loads(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)]
    github = [one for one in shown if "jobs" in one]
    gitlab = [one for one in shown if "include" in one]
    assert len(github) >= 3
    assert len(gitlab) >= 1
    ours = [step for one in github for step in steps(one) if str(step.get("uses")).startswith("petra-deploy/")]
    assert {step["with"]["command"] for step in ours} == set(VERBS)
    for step in ours:
        assert step["with"].keys() <= action()["inputs"].keys()
    for step in (step for one in github for step in steps(one) if "run" in step):
        assert "${{" not in step["run"]
    template = load(TEMPLATE)
    jobs = [job for one in gitlab for job in one.values() if isinstance(job, dict) and "extends" in job]
    assert {job["extends"].rpartition(":")[2] for job in jobs} == set(VERBS)
    for job in jobs:
        assert job["extends"] in template
        assert job.get("variables", {}).keys() <= template[".petra-deploy"]["variables"].keys()
