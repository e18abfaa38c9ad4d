"""A wheel of "another version" of ONNX Runtime, made here: the installed one under another version number.

    wheel = write_wheel(folder, "1.99.0")           # pip install --find-links folder onnxruntime==1.99.0

Its code is the installed runtime's own, so that all of it runs; without an index, and within a second.
"""

import zipfile
from pathlib import Path

_INIT = """
import sys
from pathlib import Path
_own = Path(__file__).resolve().parent
_real = next(p for p in (Path(entry) / "onnxruntime" for entry in sys.path) if (p / "capi").is_dir() and p != _own)
__path__ = [str(_real)]
exec(compile((_real / "__init__.py").read_text(), str(_real / "__init__.py"), "exec"))
__version__ = "{version}"
"""


def write_wheel(folder: Path, version: str, init: str = _INIT) -> Path:
    """Written into `folder`; `init` is the code of the package, if not that of the installed one."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = f"onnxruntime-{version}.dist-info"
    path = folder / f"onnxruntime-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("onnxruntime/__init__.py", init.replace("{version}", version))
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n")
        wheel.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nGenerator: petra\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{facts}/RECORD", "")
    return path
