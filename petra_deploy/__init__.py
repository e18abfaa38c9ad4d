"""petra-deploy: from a trained PyTorch model to the fastest engine a machine can serve.

    result = petra_deploy.optimize("model.pt", data="data.npz", target="cpu", max_drop=1.0)
    with petra_deploy.load_bundle(result.bundle) as bundle:
        outputs = bundle.run({"image": images})

Each name is imported at its first use, so importing the package costs nothing. It tells ONNX Runtime,
which from 1.31 on would report its use to its maker, to send nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petra_deploy.api import Result, apply, build, inspect, optimize
    from petra_deploy.core.errors import PetraError
    from petra_deploy.core.strategy import Step, Strategy
    from petra_deploy.driver.bundle.manifest import Manifest
    from petra_deploy.driver.bundle.verify import verify
    from petra_deploy.measuring import bench, compare, history, profile_ops, refresh
    from petra_deploy.runtime import Bundle, load_bundle

__version__ = "0.1.0"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported, and by every child

__all__ = [
    "Bundle", "Manifest", "PetraError", "Result", "Step", "Strategy", "__version__", "apply", "bench", "build",
    "compare", "history", "inspect", "load_bundle", "optimize", "profile_ops", "refresh", "verify",
]  # fmt: skip

_HOMES = {
    "optimize": "api", "apply": "api", "bench": "measuring", "build": "api", "inspect": "api", "Result": "api",
    "compare": "measuring", "history": "measuring", "profile_ops": "measuring", "refresh": "measuring",
    "load_bundle": "runtime", "Bundle": "runtime", "verify": "driver.bundle.verify",
    "Manifest": "driver.bundle.manifest", "Strategy": "core.strategy", "Step": "core.strategy",
    "PetraError": "core.errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
