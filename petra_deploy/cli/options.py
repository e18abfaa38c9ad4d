"""The options that verbs share: the same words everywhere, each with an example in its help.

    @click.command()
    @workload                    # MODEL, --data, --train/--selection/--test, --model, --trust, --input, --metric
    @judgement                   # --target, --runtime, --remote, --require-measured, --certify, --max-drop, ...
    @output                      # --json, --quiet, --debug

Values arrive under the names of `petra_deploy.optimize`'s own arguments.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from petra_deploy.core.errors import PetraError

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """A value read by one of core/request.py's parsers, imported when a value is given."""

    def __init__(self, name: str, parser: str) -> None:
        self.name = name
        self.parser = parser

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from petra_deploy.core import request

        try:
            return getattr(request, self.parser)(value)
        except PetraError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


DURATION = Parsed("time", "parse_duration")
BATCHES = Parsed("sizes", "parse_batches")
SHARE = Parsed("share", "parse_share")
SCENARIOS = Parsed("names", "parse_scenarios")
PATH = click.Path(path_type=str)


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model_argument = click.argument("model", required=False, type=PATH, metavar="[MODEL]")

workload = _together(
    click.option("--data", type=PATH, metavar="PATH",
                 help="One .npz to split, a folder of .npz shards, or a workload.py. Example: --data data.npz"),
    click.option("--train", type=PATH, metavar="PATH", help="Training rows apart. Example: --train train.npz"),
    click.option("--selection", type=PATH, metavar="PATH",
                 help="Rows that choose between strategies. Example: --selection selection.npz"),
    click.option("--test", type=PATH, metavar="PATH",
                 help="Rows opened once, at the end. Example: --test test.npz"),
    click.option("--model", "model_factory", metavar="FILE.py:FUNC",
                 help="What makes the model that a state_dict belongs to. Example: --model net.py:build"),
    click.option("--trust", is_flag=True,
                 help="Let code inside MODEL run: pickled classes, TorchScript, .pt2. Example: --trust"),
    click.option("--input", "inputs", multiple=True, metavar="NAME:DTYPE[SHAPE]",
                 help="An input, where neither model nor data say it. Example: --input 'image:float32[1,3,224,224]'"),
    click.option("--metric", metavar="NAME|FILE.py:FUNC",
                 help="accuracy, f1, auc, mse, mae, rmse, r2, cosine, agreement, or yours. Example: --metric f1"),
)  # fmt: skip

rows = _together(
    click.option("--data", type=PATH, metavar="PATH",
                 help="Rows to feed, and with labels to score: .npz, a folder of them, or a workload.py  [default: "
                      "made up]. Example: --data test.npz"),
    click.option("--input", "inputs", multiple=True, metavar="NAME:DTYPE[SHAPE]",
                 help="A shape that the model leaves open. Example: --input 'ids:int64[1,128]'"),
    click.option("--metric", metavar="NAME|FILE.py:FUNC", help="Of those rows  [default: by the labels]. "
                 "Example: --metric f1"),
)  # fmt: skip

remote = _together(
    click.option("--remote", metavar="[USER@]HOST[:PORT]",
                 help="The machine that has the target, over ssh (docs/remote.md). Example: --remote me@box"),
    click.option("--remote-python", metavar="PATH",
                 help="The Python there  [default: python3]. Example: --remote-python /opt/venv/bin/python"),
)  # fmt: skip

target = _together(
    click.option("--target", default="cpu", show_default=True, metavar="NAME|FILE.toml|ssh://HOST/NAME",
                 help="Where it will run, of `petra-deploy targets list`. Example: --target cpu"),
    remote,
)  # fmt: skip

judgement = _together(
    target,
    click.option("--runtime", default="", metavar="NAME",
                 help="One of the target's runtimes, for the whole run. Example: --runtime openvino  "
                      "[default: its own, and the others for the finalists]"),
    click.option("--require-measured", is_flag=True,
                 help="Refuse a target that is not here, rather than predict. Example: --require-measured"),
    click.option("--certify", is_flag=True,
                 help="Compute on which processors the accuracy holds, beside this one. Example: --certify"),
    click.option("--max-drop", type=click.FloatRange(min=0), metavar="POINTS",
                 help="The most that the metric may fall; a point is 0.01. Example: --max-drop 0.5  "
                      "[default: 1.0; apply: the strategy's own]"),
    click.option("--batch", "batches", type=BATCHES, default=(1, 16), metavar="SIZES",
                 help="Batch sizes to measure; latency means the first. Example: --batch 1,16  [default: 1,16]"),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N",
                 help="Of splits, training and search. Example: --seed 7"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                 help="Where training runs. Example: --device cpu"),
)  # fmt: skip

here = _together(
    click.option("--target", default="", metavar="NAME|FILE.toml",
                 help="In place of the one that it was made for. Example: --target t4"),
    click.option("--runtime", default="", metavar="NAME",
                 help="One of the target's runtimes  [default: its own]. Example: --runtime onnxruntime"),
)  # fmt: skip

elsewhere = _together(
    here,
    remote,
)  # fmt: skip

out = click.option("--out", type=PATH, metavar="FOLDER",
                   help="Where everything goes [default: petra-out/<model name>]. Example: --out runs/net")  # fmt: skip

history = click.option("--history", type=PATH, metavar="FOLDER",
                       help="Report where the figures of the profiles saved there changed for good, and do nothing "
                            "else (docs/history.md). Example: --history profiles")  # fmt: skip

as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout. Example: --json | jq .speedup"
)

debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks. Example: --debug")

output = _together(
    as_json,
    click.option("--quiet", is_flag=True, help="No progress; only the bundle's path. Example: --quiet"),
    debug,
)
