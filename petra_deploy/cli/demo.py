"""`petra-deploy demo`: the whole journey on handwritten digits, which ship with the package."""

import os
import subprocess
import sys
from pathlib import Path

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, answer
from petra_deploy.core.errors import BadInput

SECONDS = 140.0
TRIALS = 8


@click.command()
@options.out
@options.output
def command(out: str | None, as_json: bool, quiet: bool) -> None:
    """Train a small CNN on handwritten digits, optimize it for this CPU, show the table.

    Takes about three minutes on two cores and leaves a bundle.

    \b
    petra-deploy demo
    """
    from petra_deploy.api import optimize
    from petra_deploy.core.event import Event

    folder = Path(out) if out else _free(Path("petra-out/demo"))
    if (folder / "run.json").exists():
        raise BadInput(f"{folder} already holds a run", "choose another --out")
    with Console(quiet=quiet) as console:
        console(Event(kind="stage", text="training a small CNN on handwritten digits"))
        brought = folder / "input"
        _train(brought)
        result = optimize(
            str(brought / "model.pt"), model_factory=f"{brought / 'model.py'}:build", data=str(brought / "data.npz"),
            target="cpu", time=SECONDS, trials=TRIALS, out=str(folder), on_event=console,
        )  # fmt: skip
    answer(result, as_json=as_json, quiet=quiet)


def _free(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3 ... that does not exist."""
    tried, number = folder, 1
    while tried.exists():
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


def _train(folder: Path) -> None:
    """Make model.pt, model.py and data.npz in `folder`, in a child: torch stays out of this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}", "choose another --out") from None
    done = subprocess.run(
        [sys.executable, "-m", "petra_deploy.demo.train", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        again = f"{sys.executable} -m petra_deploy.demo.train {folder}"
        raise BadInput(f"the demo's model could not be trained: {last}", f"see all of it with: {again}")
