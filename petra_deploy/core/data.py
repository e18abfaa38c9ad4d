"""The base of every type that crosses a door: frozen dataclasses that refuse unknown keys.

pydantic's TypeAdapter reads these dataclasses at the edges (`core/files.py`). It would drop an
unknown key of a plain dataclass in silence; with the config below it names the key instead.
"""

from typing import ClassVar


class Data:
    """Inherit this, and decorate with `@dataclass(frozen=True, kw_only=True)`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
