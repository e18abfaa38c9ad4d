"""Silence around libraries that talk while they work: exporters and quantizers.

    with quiet():
        torch.onnx.export(...)

Their warnings are addressed to programmers of models, not to users of ours. Exceptions pass.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No Python warnings, no logging and no prints inside; all as before on leaving."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def cause(error: BaseException) -> str:
    """One line that says why: of the first exception in the chain, its first line that says much."""
    seen: set[int] = set()
    while (deeper := error.__cause__ or error.__context__) is not None and id(deeper) not in seen:
        seen.add(id(deeper))
        error = deeper
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    return f"{type(error).__name__}: {line}"[:300] if line else type(error).__name__
