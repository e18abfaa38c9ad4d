"""action.yml, the workflows and the GitLab template as data, and their shell scripts as a runner would run them."""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "ci" / "petra-deploy.gitlab-ci.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


class _Loader(yaml.SafeLoader):
    """GitLab's `!reference [job, script]` becomes the tuple (job, script)."""


_Loader.add_constructor("!reference", lambda loader, node: tuple(loader.construct_sequence(node)))


def load(path: Path) -> Any:
    return loads(path.read_text(encoding="utf-8"))


def loads(text: str) -> Any:
    return yaml.load(text, _Loader)


def action() -> Any:
    return load(ROOT / "action.yml")


def steps(document: Any) -> list[dict[str, Any]]:
    """Those of an action, or of every job of a workflow."""
    if "runs" in document:
        return list(document["runs"]["steps"])
    return [step for job in document["jobs"].values() for step in job["steps"]]


def gitlab_script(job: str, part: str = "script") -> str:
    """The lines of a job of the template, `extends` and `!reference` followed."""
    template = load(TEMPLATE)
    found: dict[str, Any] = template[job]
    while part not in found:
        found = template[found["extends"]]
    return "\n".join(gitlab_script(*line) if isinstance(line, tuple) else line for line in found[part])


@dataclass
class Ran:
    code: int
    out: str
    outputs: dict[str, str] = field(default_factory=dict)  # of GITHUB_OUTPUT
    summary: str = ""


def run_step(
    name: str, inputs: dict[str, str], folder: Path, environment: dict[str, str], known: dict[str, str] | None = None
) -> Ran:
    """Run a step of action.yml in `folder` with `inputs`, as GitHub does.

    `known` gives what other expressions are, such as "steps.key.outputs.key".
    """
    document = action()
    unknown = inputs.keys() - document["inputs"].keys()
    assert not unknown, f"action.yml has no input {unknown}"
    given = {key: inputs.get(key, one.get("default", "")) for key, one in document["inputs"].items()}
    values = {f"inputs.{key}": value for key, value in given.items()} | {"toJSON(inputs)": json.dumps(given)}
    values |= known or {}
    (step,) = (one for one in document["runs"]["steps"] if one.get("id") == name)
    env = {key: _EXPRESSION.sub(lambda found: values[found[1]], text) for key, text in step.get("env", {}).items()}
    output, summary = folder / "github-output.txt", folder / "github-summary.md"
    output.write_text("")
    summary.write_text("")
    env |= {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_REPOSITORY": "someone/something"}
    done = bash(step["run"], folder, {**environment, **env}, "--noprofile", "--norc", "-eo", "pipefail")
    pairs = (line.partition("=") for line in output.read_text().splitlines())
    return Ran(done.code, done.out, {key: value for key, _, value in pairs}, summary.read_text())


def run_job(
    job: str, variables: dict[str, str], folder: Path, environment: dict[str, str], part: str = "script"
) -> Ran:
    """Run a part of a job of the GitLab template in `folder`."""
    defaults = {key: str(value) for key, value in load(TEMPLATE)[".petra-deploy"]["variables"].items()}
    unknown = variables.keys() - defaults.keys() - {"PETRA_TOKEN"}
    assert not any(name.startswith("PETRA_") for name in unknown), unknown
    told = {"CI_PROJECT_DIR": str(folder), "CI_JOB_NAME": job.lstrip("."), **defaults, **variables}
    return bash(gitlab_script(job, part), folder, {**environment, **told}, "-eo", "pipefail")


def bash(script: str, folder: Path, environment: dict[str, str], *options: str) -> Ran:
    file = folder / "script.sh"
    file.write_text(script)
    done = subprocess.run(["bash", *options, str(file)], cwd=folder, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
    return Ran(done.returncode, done.stdout)


def with_command(folder: Path, environment: dict[str, str], python: str) -> dict[str, str]:
    """`environment` with `petra-deploy` and `python` first on the path, as an installation has them."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, line in (
        ("petra-deploy", f'exec "{python}" -P -m petra_deploy "$@"'),
        ("python", f'exec "{python}" "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    return {**environment, "PATH": os.pathsep.join([str(programs), environment["PATH"]])}
