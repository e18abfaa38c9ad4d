"""The command: finds the verb, runs it, and turns every error into a sentence and an exit code.

    error: no such file: model.pt

    hint: give the path of a .pt, .pt2 or .onnx file

Verbs are imported by name when they are asked for, and import the API inside: `--help` needs
neither torch nor numpy. Exit codes are in core/errors.py; 70 is a fault of ours (EX_SOFTWARE).
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from petra_deploy import __version__
from petra_deploy.core.errors import PetraError

VERBS = (
    "optimize", "apply", "demo", "inspect", "bench", "compare", "profile-ops", "refresh", "build", "verify", "targets",
)  # fmt: skip
INTERNAL = 70
INTERRUPTED = 130


class Verbs(click.Group):
    """Each verb is a module of this folder, with _ for -, that holds a click command called `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"petra_deploy.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"there is no verb {args[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"petra-deploy {__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="The version.")
def cli() -> None:
    """From a trained PyTorch model to the fastest engine this machine can serve, within an
    accuracy budget, every number measured.

    \b
    petra-deploy demo
    petra-deploy optimize model.pt --model net.py:build --data data.npz --target cpu
    """


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end: the same as Ctrl-C
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments`; returns the exit code. Errors are told on stderr."""
    debug = "--debug" in arguments
    try:
        code = cli.main(args=list(arguments), prog_name="petra-deploy", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "petra-deploy"
        return _tell(error.format_message(), f"{where} --help shows every option with an example", error.exit_code)
    except click.ClickException as error:
        return _tell(error.format_message(), "", error.exit_code)
    except PetraError as error:
        if debug:
            _trace()
        return _tell(error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _tell("interrupted", "the same command with --resume goes on", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, like `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            _trace()
        return _tell(*_fault(error))


def _fault(error: Exception) -> tuple[str, str, int]:
    """What to say of an exception that nobody foresaw."""
    from petra_deploy.core.errors import OutOfDisk
    from petra_deploy.core.folder import disk_fault

    if reason := disk_fault(error):
        return f"nothing more can be written: {reason}", "free some space and use --resume", OutOfDisk.exit_code
    said = " ".join(str(error).split())[:300]
    return (
        f"internal error: {type(error).__name__}: {said}",
        "run again with --debug, and report what it shows",
        INTERNAL,
    )


def _trace() -> None:
    import traceback

    traceback.print_exc(file=sys.stderr)


def _tell(message: str, hint: str, code: int) -> int:
    text = f"error: {_plain(message)}\n"
    if hint:
        text += f"\nhint: {_plain(hint)}\n"
    print(text, end="", file=sys.stderr, flush=True)
    return code


def _plain(text: Any) -> str:
    """Without control characters: a name in a file may hold escape codes."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(text)).strip()
