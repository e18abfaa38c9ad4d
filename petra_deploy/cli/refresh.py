"""`petra-deploy refresh`: is another version of the runtime worth having for this bundle?"""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, dump


@click.command()
@click.argument("bundle", type=options.PATH, metavar="BUNDLE")
@click.option("--with", "tried", required=True, metavar="RUNTIME==VERSION",
              help="The version to try, fetched by pip beside the installed one. "
                   "Example: --with onnxruntime==1.31.0")  # fmt: skip
@click.option("--target", default="", metavar="NAME|FILE.toml",
              help="In place of the one that it was made for. Example: --target cpu")  # fmt: skip
@click.option("--data", type=options.PATH, metavar="PATH",
              help="Rows to judge the metric on  [default: the test rows of its run, where they are still here]. "
                   "Example: --data test.npz")  # fmt: skip
@click.option("--metric", metavar="NAME", help="Of the rows of --data. Example: --metric f1")
@click.option("--rounds", type=click.IntRange(min=4), default=20, show_default=True, metavar="N",
              help="At most, of one version against the other. Example: --rounds 40")  # fmt: skip
@click.option("--time", default="10m", show_default=True, metavar="DURATION", help="At most. Example: --time 20m")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the order of runs.")
@options.output
def command(bundle: str, tried: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Replay the strategy of BUNDLE under another version of its runtime: keep, upgrade or search again?

    The version goes into a folder of the cache; the environment and BUNDLE stay as they are. Both versions are timed
    in turns and scored on the same rows. It is advice: the exit code is 0 whichever it is.

    \b
    petra-deploy refresh petra-out/model/bundle --with onnxruntime==1.31.0
    """
    from petra_deploy.driver.report import refresh as report
    from petra_deploy.measuring import refresh

    with Console(quiet=quiet) as console:
        advice = refresh(bundle, tried, **given, on_event=console)
    if as_json:
        dump(advice)
    else:
        click.echo(advice.advice if quiet else report.table(advice))
