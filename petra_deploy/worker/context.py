"""What a job can reach besides its own fields: the store and a log."""

from collections.abc import Callable
from dataclasses import dataclass

from petra_deploy.core.store import Store


@dataclass(frozen=True)
class Context:
    store: Store
    log: Callable[[str], None]
