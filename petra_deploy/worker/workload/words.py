"""How an exception of someone else's code is told: its class and text, on one line.

raise Problem("input", f"the model raised {one_line(error)}")
"""

import traceback
from pathlib import Path


def one_line(error: BaseException, file: Path | None = None) -> str:
    """The exception's class and text in one line, and the line of `file` that it came from."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if file is not None:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        if lines:
            said += f" (line {lines[-1]})"
    return said
