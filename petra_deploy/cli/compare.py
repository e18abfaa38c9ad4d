"""`petra-deploy compare`: a gate on latency, size and metric between two engines."""

from pathlib import Path
from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, dump


@click.command()
@click.argument("base", type=options.PATH, metavar="BASE")
@click.argument("new", type=options.PATH, metavar="[NEW]", required=False)
@options.elsewhere
@click.option(
    "--fail-above",
    type=options.SHARE,
    default=0.05,
    metavar="SHARE",
    help="The most that a call may take longer. Example: --fail-above 3%  [default: 5%]",
)
@click.option(
    "--fail-size-above",
    type=options.SHARE,
    metavar="SHARE",
    help="The most that the file may grow. Example: --fail-size-above 10%",
)
@click.option(
    "--fail-drop-above",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="The most that the metric may fall on the rows of --data. Example: --fail-drop-above 0.5",
)
@click.option("--strict", is_flag=True, help="An inconclusive gate fails too (exit code 1).")
@click.option(
    "--batch",
    "batches",
    type=options.BATCHES,
    default=(1,),
    metavar="SIZES",
    help="A gate on latency at each. Example: --batch 1,16  [default: 1]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of both engines  [default: their own]. Example: --threads 2",
)
@options.rows
@click.option(
    "--rounds",
    type=click.IntRange(min=4),
    default=20,
    show_default=True,
    metavar="N",
    help="At most; most comparisons end after four to eight. Example: --rounds 40",
)
@click.option("--time", default="10m", show_default=True, metavar="DURATION", help="At most. Example: --time 5m")
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of the order of runs. Example: --seed 7"
)
@click.option("--recorded", is_flag=True, help="Compare the records of two profiles; measure nothing.")
@click.option("--cross-machine", is_flag=True, help="Allow profiles of two machines, and say what that is worth.")
@click.option("--explain", is_flag=True, help="Name the layers that got slower.")
@click.option("--save", metavar="FILE.json", help="Keep the comparison with its raw rounds. Example: --save gate.json")
@click.option("--junit", metavar="FILE.xml", help="A JUnit report, a case a gate. Example: --junit gate.xml")
@click.option("--markdown", metavar="FILE.md", help="A table for a pull request. Example: --markdown gate.md")
@options.output
def command(strict: bool, junit: str | None, markdown: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure NEW against BASE in turns, until it is settled whether it is slower than allowed.

    Each is a bundle, an .onnx file, or a profile of `bench --save`, which stands for the engine that it was made of.
    Exit code 0 for pass and for inconclusive (with a warning), 1 for fail, and with --strict for inconclusive.
    A file of --save alone is judged again from its rounds.

    \b
    petra-deploy compare base/bundle new/bundle --fail-above 5%
    """
    from petra_deploy.core import files
    from petra_deploy.core.verdict import overall
    from petra_deploy.driver.report import compare as report
    from petra_deploy.measuring import compare

    for path in filter(None, (junit, markdown)):
        files.writable(Path(path))
    with Console(quiet=quiet) as console:
        result = compare(**given, on_event=console)
    if junit:
        report.write(junit, report.junit(result.comparison, strict=strict))
    if markdown:
        report.write(markdown, report.markdown(result.comparison, result.explained))
    if as_json:
        plain = files.plain(result.comparison)
        dump({"verdict": overall(result.comparison.verdicts), **{k: v for k, v in plain.items() if k != "rounds"},
              "explained": result.explained})  # fmt: skip
    elif quiet:
        click.echo(overall(result.comparison.verdicts))
    else:
        click.echo(report.table(result.comparison, result.explained))
    verdict = overall(result.comparison.verdicts)
    if verdict == "fail" or (strict and verdict == "inconclusive"):
        raise click.exceptions.Exit(1)
