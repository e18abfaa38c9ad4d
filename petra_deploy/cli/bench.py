"""`petra-deploy bench`: finish a predicted run on the target itself."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, answer, past


@click.command()
@click.argument("run", type=options.PATH, metavar="OUT", required=False)
@options.elsewhere
@click.option("--time", default="10m", show_default=True, metavar="DURATION", help="At most. Example: --time 5m")
@options.history
@options.output
def command(as_json: bool, quiet: bool, history: str | None, **given: Any) -> None:
    """Measure the finalists of a predicted run where its target is, and choose again.

    OUT is the --out folder of `optimize --target NAME` on a machine without that target, here or copied to it.
    OUT/bundle becomes the one that is fastest in fact; how far each prediction was off goes into the ledger, from
    which later predictions have their error bars. Exit code 3 where the target is not here.

    \b
    petra-deploy bench petra-out/model --target t4
    petra-deploy bench --history profiles
    """
    if history is not None:
        return past(history, as_json=as_json)
    if given["run"] is None:
        raise click.UsageError("Missing argument 'OUT'.")

    from petra_deploy.api import bench

    with Console(quiet=quiet) as console:
        result = bench(**given, on_event=console)
    answer(result, as_json=as_json, quiet=quiet)
