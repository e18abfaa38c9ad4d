"""`petra-deploy apply`: make a bundle from a known strategy, without a search."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, answer


@click.command()
@click.argument("strategy", type=options.PATH, metavar="STRATEGY")
@options.model_argument
@options.workload
@options.judgement
@options.out
@options.output
def command(as_json: bool, quiet: bool, **given: Any) -> None:
    """Apply the strategy.json of a bundle to MODEL: the same model, or a retrained one.

    The budget and the speedup are checked again; exit code 1 when they no longer hold.

    \b
    petra-deploy apply bundle/strategy.json retrained.pt --model net.py:build --data data.npz
    """
    from petra_deploy.api import apply

    with Console(quiet=quiet) as console:
        result = apply(**given, on_event=console)
    answer(result, as_json=as_json, quiet=quiet)
