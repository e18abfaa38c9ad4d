"""What happens during a run, for eyes only: progress, log and report are drawn from these."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from petra_deploy.core.data import Data


@dataclass(frozen=True, kw_only=True)
class Event(Data):
    kind: Literal["stage", "note", "trial", "best", "warning"]
    text: str
    trial: int | None = None
    of: int | None = None  # trials expected in all, as far as known
    seconds_left: float | None = None
    best_speedup: float | None = None


OnEvent = Callable[[Event], None]


def silent(_: Event) -> None:
    """The listener of a caller who does not look."""
