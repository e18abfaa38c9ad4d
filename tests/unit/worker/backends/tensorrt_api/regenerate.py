"""Write `<version>.json`: every public name of TensorRT's Python bindings, class by class. No TensorRT is needed.

    pip download tensorrt-cu13-bindings==11.4.0.106 --no-deps -d wheels
    python regenerate.py wheels/tensorrt_cu13_bindings-*.whl

The bindings are on PyPI, the libraries below them are not. The extension module asks them for nine
functions, none of which it calls while it registers its classes: libraries that define those nine and
nothing else let it be imported, and then it can be asked for its names. Needs Linux, gcc, and the
Python version of the wheel.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
ASK = """
import inspect, json, tensorrt_bindings.tensorrt as trt
kinds = {name: kind for name, kind in vars(trt).items() if inspect.isclass(kind) and name[0] != "_"}
names = {name: sorted(n for n in dir(kind) if n[0] != "_")
         for name, kind in sorted(kinds.items()) if "Plugin" not in name}
names[""] = sorted(n for n in dir(trt) if n[0] != "_" and n not in kinds)
print(json.dumps(names))
"""


def main(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    major, minor = version.split(".")[:2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        zipfile.ZipFile(wheel).extractall(folder)
        package = folder / "tensorrt_bindings" / "__init__.py"
        added = [node.name for node in ast.parse(package.read_text()).body if isinstance(node, ast.FunctionDef)]
        package.write_text("")  # it would load the real libraries
        source = folder / "nothing.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
        for library in LIBRARIES:
            out = folder / f"{library}.so.{major}"
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, source, f"-Wl,-soname,{out.name}"], check=True)
        done = subprocess.run(
            [sys.executable, "-c", ASK], cwd=folder, env={**os.environ, "LD_LIBRARY_PATH": scratch},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    names = json.loads(done.stdout)
    names[""] = sorted({*names[""], *(name for name in added if name[0] != "_")})
    lines = (f"{json.dumps(kind)}: {json.dumps(members)}" for kind, members in names.items())
    out = Path(__file__).with_name(f"{major}.{minor}.json")
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.write(f"{out.name}: {len(names)} classes\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
