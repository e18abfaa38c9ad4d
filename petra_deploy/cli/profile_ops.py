"""`petra-deploy profile-ops`: where an engine's time goes, by layer of the original model."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, dump


@click.command("profile-ops")
@click.argument("engine", type=options.PATH, metavar="ENGINE|BUNDLE|MODEL.onnx")
@click.option("--against", type=options.PATH, metavar="BASE",
              help="What it was before: a bundle, a folder with model.onnx, an .onnx file. "
                   "Example: --against old/bundle  "
                   "[default: the baseline beside a bundle in its run folder]")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Rows a call. Example: --batch 16")  # fmt: skip
@click.option(
    "--data", type=options.PATH, metavar="PATH", help="Rows to feed  [default: made up]. Example: --data x.npz"
)
@click.option("--input", "inputs", multiple=True, metavar="NAME:DTYPE[SHAPE]",
              help="An input whose size the file leaves open. Example: --input 'ids:int64[1,128]'")  # fmt: skip
@options.here
@click.option("--time", default="10m", show_default=True, metavar="DURATION", help="At most. Example: --time 5m")
@click.option("--all", "every", is_flag=True, help="Every layer, not only those that take longest. Example: --all")
@options.output
def command(engine: str, every: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Time every operator of ENGINE, and say which layers of the original model they are.

    Against what it was before: which layers are slower, which of an INT8 engine stayed in float, what conversions
    cost. By the runtime's own profiler; docs/profiling.md says what its times are worth.

    \b
    petra-deploy profile-ops petra-out/model/bundle
    petra-deploy profile-ops new.onnx --against old.onnx --batch 16
    """
    from petra_deploy.driver.report.operators import text
    from petra_deploy.measuring import profile_ops

    with Console(quiet=quiet or as_json) as console:
        report = profile_ops(engine, **given, on_event=console)
    if as_json:
        dump(report)
    else:
        click.echo(text(report, every=every))
