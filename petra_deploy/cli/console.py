"""What the terminal shows while a run goes on, and at its end.

    with Console(quiet=False) as console:
        result = optimize(model, on_event=console)

Progress goes to stderr: one live line on a terminal, plain lines elsewhere, nothing with --quiet.
The answer goes to stdout: the table, or with --json exactly one JSON object.
"""

import sys
import threading
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from petra_deploy.api import Result
    from petra_deploy.core.event import Event
    from petra_deploy.core.profile import Profile


class Console:
    """Call it with each event; it may be called from several threads."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._lock = threading.Lock()
        self._live = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._best: float | None = None

    def __call__(self, event: "Event") -> None:
        if self.quiet:
            return
        with self._lock:
            if self._live:
                self._draw(event)
            else:
                print(line(event), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _draw(self, event: "Event") -> None:
        progress, task = self._started()
        if event.kind in ("note", "warning"):
            progress.console.print(line(event), markup=False, highlight=False)
        if event.kind in ("stage", "trial"):
            progress.update(task, description=shorten(event.text, 48))
        if event.trial is not None:
            progress.update(task, completed=event.trial, total=event.of)
        self._best = event.best_speedup or self._best
        progress.update(task, facts=", ".join(facts(replace(event, best_speedup=self._best))))

    def _started(self) -> "tuple[Progress, TaskID]":
        if self._progress is None or self._task is None:
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
            )
            self._progress = Progress(*columns, console=Terminal(stderr=True), transient=True)
            self._task = self._progress.add_task("starting", total=None, facts="")
            self._progress.start()
        return self._progress, self._task


def line(event: "Event") -> str:
    """An event as one plain line."""
    from petra_deploy.driver.report.table import printable

    head = {"warning": "warning: ", "note": "note: "}.get(event.kind, "")
    if event.trial is not None:
        head = f"trial {event.trial}{f' of {event.of}' if event.of else ''}: "
    tail = f" ({', '.join(known)})" if (known := facts(event)) else ""
    return head + printable(event.text) + tail


def facts(event: "Event") -> list[str]:
    """The best so far and the time left, as far as the event knows them."""
    known = []
    if event.best_speedup is not None:
        known.append(f"best {event.best_speedup:.2f}x")
    if event.seconds_left is not None:
        minutes, seconds = divmod(max(0, round(event.seconds_left)), 60)
        known.append(f"{minutes}m{seconds:02d}s left" if minutes else f"{seconds}s left")
    return known


def shorten(text: str, width: int) -> str:
    from petra_deploy.driver.report.table import printable

    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def answer(result: "Result", *, as_json: bool, quiet: bool) -> None:
    """Print what came out. Raises NotMet where nothing met the budget, after showing the nearest."""
    from petra_deploy.core import files
    from petra_deploy.core.errors import NotMet
    from petra_deploy.driver.report.table import print_table

    manifest = result.manifest
    if as_json:
        if manifest is not None:
            print(files.dumps({**files.plain(manifest), "out": str(result.out)}))
    elif not quiet:
        size = None if manifest is None else manifest.baseline.bytes
        notes = () if manifest is None else manifest.notes
        print_table(result.front, baseline_bytes=size, notes=notes, file=sys.stdout)
    if result.bundle is None:
        raise NotMet(
            result.front.why or "no strategy met the budget",
            "allow a larger --max-drop, more --time, or bring more data; the model as it came is in "
            f"{result.out / 'baseline'}",
        )
    if not as_json and not quiet and manifest is not None and manifest.holds:
        print(manifest.holds)
    if not as_json:
        print(result.bundle if quiet else f"\nbundle: {result.bundle}")
        if manifest is not None and manifest.speedup.origin == "predicted" and not quiet:
            name, ratio = manifest.target.name, manifest.speedup
            within = f", the speedup within a factor of {ratio.high / ratio.value:.3g}" if ratio.high else ""
            print(f"no {name} has run it: every latency and speedup above is predicted{within}")


def profiled(profile: "Profile", *, saved: str | None, as_json: bool, quiet: bool) -> None:
    """Print a profile: its table, or all of it as JSON; with --quiet the path that it was saved to."""
    from petra_deploy.driver.report.bench import table

    if as_json:
        dump(profile)
    elif not (quiet and saved):
        print(table(profile))
    if saved and not as_json:
        print(saved if quiet else f"\nprofile: {saved}")


def dump(value: Any) -> None:
    """Print `value` (dataclasses, dicts) as one JSON object."""
    from petra_deploy.core import files

    print(files.dumps(value))


def past(folder: str, *, as_json: bool) -> None:
    """Print where the figures of the profiles in `folder` changed."""
    from petra_deploy.driver.report.history import text
    from petra_deploy.measuring import history

    found = history(folder)
    dump(found) if as_json else print(text(found))
