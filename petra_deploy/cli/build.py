"""`petra-deploy build`: the engine of a bundle, for the machine at hand."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, dump


@click.command()
@click.argument("bundle", type=options.PATH, metavar="BUNDLE")
@options.here
@click.option("--time", default="10m", show_default=True, metavar="DURATION", help="At most. Example: --time 5m")
@options.output
def command(bundle: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Build the engine of BUNDLE for this machine, check it against the ONNX file, and put it into BUNDLE.

    For a bundle that was made without its target at hand. Its figures stay predicted: `petra-deploy bench` measures.
    Exit code 3 where the bundle's target is not here.

    \b
    petra-deploy build petra-out/model/bundle
    """
    from petra_deploy.api import build

    with Console(quiet=quiet) as console:
        manifest = build(bundle, **given, on_event=console)
    if as_json:
        dump(manifest)
    else:
        click.echo(bundle if quiet else f"{bundle}: built with {manifest.runtime.name} for {manifest.target.name}")
