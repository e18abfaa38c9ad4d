"""Every exit code of the program in one place.

    0 done; 1 no strategy met the budget, or a check failed; 2 bad input or usage; 3 the target is
    not here; 4 an extra is missing; 75 out of disk, resumable (EX_TEMPFAIL); 130 interrupted

A `PetraError` is one sentence for a person, and a hint that says what to do next. Inside workers
raise `Problem`; the child turns it into a `Failed` and the driver decides what it means.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petra_deploy.core.outcome import Failed, FailureKind


class PetraError(Exception):
    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(PetraError):
    exit_code = 2


class NotMet(PetraError):
    """No strategy met the budget, or a check failed."""

    exit_code = 1


class TargetAbsent(PetraError):
    exit_code = 3


class MissingExtra(PetraError):
    exit_code = 4


class OutOfDisk(PetraError):
    exit_code = 75


class Interrupted(PetraError):
    exit_code = 130


class Problem(Exception):
    """Why a job cannot be done; raised anywhere in a worker."""

    def __init__(self, kind: "FailureKind", reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.hint = hint


def of_kind(kind: str) -> type[PetraError]:
    """The error that a failure of this kind is to whoever needs what failed."""
    kinds: dict[str, type[PetraError]] = {
        "extra": MissingExtra, "absent": TargetAbsent, "lost": TargetAbsent, "disk": OutOfDisk,
    }  # fmt: skip
    return kinds.get(kind, BadInput)


def from_failure(failed: "Failed") -> PetraError:
    """The error that ends the program when a job that everything needs has failed."""
    return of_kind(failed.kind)(failed.reason, failed.hint or (f"the log is {failed.log}" if failed.log else ""))
