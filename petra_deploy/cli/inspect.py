"""`petra-deploy inspect`: what a model is, and what can be done to it."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, dump


@click.command()
@options.model_argument
@options.workload
@options.target
@options.as_json
@options.debug
def command(as_json: bool, **given: Any) -> None:
    """Show MODEL's form, inputs, parameters and groups, which techniques apply, and why others do not.

    \b
    petra-deploy inspect model.pt --model net.py:build --data data.npz
    """
    from petra_deploy.api import inspect
    from petra_deploy.driver.report.inspection import text

    with Console(quiet=as_json) as console:
        inspection = inspect(**given, on_event=console)
    if as_json:
        dump(inspection)
    else:
        click.echo(text(inspection.loaded.workload, inspection.inspected, given["target"]))
