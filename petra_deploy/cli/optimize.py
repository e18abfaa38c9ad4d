"""`petra-deploy optimize`: search, choose, package."""

from typing import Any

import click

from petra_deploy.cli import options
from petra_deploy.cli.console import Console, answer


@click.command()
@options.model_argument
@options.workload
@options.judgement
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "size"]),
    default="latency",
    show_default=True,
    help="What to win. Example: --objective size",
)
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", help="The most strategies tried. Example: --trials 12"
)
@click.option(
    "--time",
    type=options.DURATION,
    metavar="TIME",
    help="The most time spent [default: 15m, without --trials]. Example: --time 20m",
)
@click.option(
    "--with",
    "with_techniques",
    multiple=True,
    metavar="TECHNIQUE",
    help="Try one that is off by default, of docs/techniques.md; may be repeated. Example: --with sparsify",
)
@click.option(
    "--without",
    "without_techniques",
    multiple=True,
    metavar="TECHNIQUE",
    help="Do not try this one; may be repeated. Example: --without drop_blocks",
)
@click.option(
    "--sampler", default="cma", show_default=True, metavar="NAME", help="Who proposes. Example: --sampler cma"
)
@click.option(
    "--storage", metavar="URL", help="Optuna storage, instead of study.db in --out. Example: --storage sqlite:///all.db"
)
@options.out
@click.option("--resume", is_flag=True, help="Go on with the run in --out, options as they were. Example: --resume")
@options.output
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, quiet: bool, **given: Any) -> None:  # fmt: skip
    """Find the fastest engine for MODEL within an accuracy budget.

    MODEL is a state_dict (with --model), a pickled module, TorchScript, .pt2 or .onnx file.

    \b
    petra-deploy optimize model.pt --model net.py:build --data data.npz --time 20m
    """
    from petra_deploy.api import optimize

    if given["max_drop"] is None:
        del given["max_drop"]
    if given["resume"]:
        given = {**_as_before(given), **_explicit(ctx, given), "resume": True}
    with Console(quiet=quiet) as console:
        result = optimize(**given, on_event=console)
    answer(result, as_json=as_json, quiet=quiet)


def _explicit(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed, whatever they say."""
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in given.items() if ctx.get_parameter_source(name) is not default}


def _as_before(given: dict[str, Any]) -> dict[str, Any]:
    """The options that the run in --out was started with, where it got so far as to write them.

    Consent to run code is not among them, nor to send the data to another machine: it is asked for again,
    since a folder cannot give it.
    """
    from pathlib import Path

    from petra_deploy.core import files
    from petra_deploy.core.folder import RunFolder, default_out
    from petra_deploy.core.request import Request, arguments

    out = Path(given["out"] or default_out(given["model"], given["model_factory"], given["data"]))
    before = dict(given, out=str(out))
    if RunFolder(out).request.exists():
        known = arguments(files.read_json(RunFolder(out).request, Request))
        runs_code = {"trust", "model_factory", "remote", "remote_python"} | {
            name for name, value in known.items() if ".py" in str(value)
        }
        before |= {name: value for name, value in known.items() if name not in runs_code or not value}
    return before
