"""A wheel of "another version" of ONNX Runtime, made here: the installed one under another version number.

    wheel = write_wheel(folder, "1.99.0")           # pip install --find-links folder onnxruntime==1.99.0

Its code is the installed runtime's own, so that all of it runs; without an index, and within a second. `SLOWER` and
`REFUSES` plant a fault in it.
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
SLOWER = """
class InferenceSession(InferenceSession):
    def run(self, *given, **more):
        super().run(*given, **more)
        super().run(*given, **more)
        return super().run(*given, **more)
"""
REFUSES = """
class InferenceSession(InferenceSession):
    def __init__(self, *given, **more):
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for MatMul(13)")
"""


def write_wheel(folder: Path, version: str, more: str = "", *, init: str = _INIT) -> Path:
    """Written into `folder`; `more` is code after that of the installed one, `init` is code in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = f"onnxruntime-{version}.dist-info"
    path = folder / f"onnxruntime-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("onnxruntime/__init__.py", init.replace("{version}", version) + more)
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n")
        wheel.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nGenerator: petra\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{facts}/RECORD", "")
    return path
