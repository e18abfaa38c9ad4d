"""`petra-deploy bench`: a profile of an engine; or finish a predicted run on the target itself."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, answer, past, profiled


@click.command()
@click.argument("engine", type=options.PATH, metavar="ENGINE", required=False)
@options.elsewhere
@click.option("--scenario", "scenarios", type=options.SCENARIOS, default="single-stream,offline", show_default=True,
              metavar="NAMES",
              help="Of single-stream, multi-stream, offline, server; or all. Example: --scenario all")  # fmt: skip
@click.option("--batch", "batches", type=options.BATCHES, default=(1, 16), metavar="SIZES",
              help="Rows a call. Example: --batch 1,8  [default: 1,16]")  # fmt: skip
@click.option("--threads", type=options.BATCHES, default=(), metavar="NUMBERS",
              help="Of the engine. Example: --threads 1,2  [default: the bundle's or the target's]")  # fmt: skip
@click.option("--time", metavar="DURATION",
              help="About the most that all of it takes. Example: --time 5m  [default: 60s; of a run 10m]")  # fmt: skip
@click.option("--latency-limit", metavar="DURATION",
              help="What p99 of server has to keep. Example: --latency-limit 10ms  [default: 5 times p50]")  # fmt: skip
@click.option("--streams", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Rows of a query of multi-stream. Example: --streams 4")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="Fresh sessions of each scenario. Example: --rounds 10")  # fmt: skip
@click.option("--data", type=options.PATH, metavar="PATH",
              help="Rows to feed, as optimize takes them  [default: made up]. Example: --data test.npz")  # fmt: skip
@click.option("--input", "inputs", multiple=True, metavar="NAME:DTYPE[SHAPE]",
              help="Sizes that the file leaves open. Example: --input 'ids:int64[batch,128]'")  # fmt: skip
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of order and arrivals. Example: --seed 7"
)
@click.option("--save", type=options.PATH, metavar="FILE.json",
              help="Write the profile, with every call's time. Example: --save profiles/cpu/model.json")  # fmt: skip
@options.history
@options.output
def command(as_json: bool, quiet: bool, history: str | None, **given: Any) -> None:
    """Measure ENGINE, a bundle or a .onnx file, in the scenarios of MLPerf's load generator.

    Tails are upper confidence bounds, or "n/a (needs N)". docs/profiles.md says how each figure is made.
    Of the --out folder of a predicted run, here or copied to its target, the finalists are measured where the target
    is and OUT/bundle becomes the one that is fastest in fact; the predictions' errors go into the ledger.
    Exit code 3 where the target is not here.

    \b
    petra-deploy bench model.onnx --target cpu --save model.json
    petra-deploy bench petra-out/model/bundle --scenario server --latency-limit 10ms
    petra-deploy bench petra-out/model --target t4
    petra-deploy bench --history profiles
    """
    if history is not None:
        return past(history, as_json=as_json)
    if given["engine"] is None:
        raise click.UsageError("Missing argument 'ENGINE'.")

    from petra_deploy.api import Result
    from petra_deploy.measuring import bench

    with Console(quiet=quiet) as console:
        found = bench(**given, on_event=console)
    if isinstance(found, Result):
        answer(found, as_json=as_json, quiet=quiet)
    else:
        profiled(found, saved=given["save"], as_json=as_json, quiet=quiet)
