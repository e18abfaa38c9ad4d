"""Open a bundle in this process and run it. No torch is needed, nor imported.

    with load_bundle("petra-out/model/bundle") as bundle:
        outputs = bundle.run({"image": images})         # {"output": array of shape (rows, classes)}
        scores, = bundle(images)                        # by position, as a tuple

Files are checked against the manifest's checksums first, which proves integrity, not origin.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from petra_deploy.core import cpus, machine, registry
from petra_deploy.core.errors import BadInput, Problem, of_kind
from petra_deploy.core.extension import Runner
from petra_deploy.core.workload import TensorSpec
from petra_deploy.driver.bundle.manifest import Manifest, RuntimeFacts
from petra_deploy.driver.bundle.verify import verify

_ON_A_GPU: dict[str, dict[str, object]] = {"onnxruntime": {"provider": "cuda"}}  # what opening cannot tell by itself
Array = np.ndarray[Any, np.dtype[Any]]


def load_bundle(path: "str | os.PathLike[str]") -> "Bundle":
    """Open the engine of a bundle with the settings it was measured with.

    Warns on a processor that the manifest does not name among those where the accuracy holds (`holds_on`).
    Raises BadInput where `path` is no bundle, NotMet where a file is missing or has changed, MissingExtra
    where its runtime is not installed, TargetAbsent where the device that it runs on is not here.
    """
    folder = Path(path)
    manifest = verify(folder)
    doubt = cpus.doubt(manifest.holds_on, machine.instructions(), certified=manifest.certified is not None)
    if doubt:
        warnings.warn(doubt, stacklevel=2)
    serving = _serving(manifest)
    backend = registry.find("backend", serving.name)
    try:
        runner = backend.open(folder, serving.settings)
    except Problem as problem:
        raise of_kind(problem.kind)(f"{folder} cannot be opened: {problem.reason}", problem.hint) from problem
    return Bundle(folder, manifest, runner)


def _serving(manifest: Manifest) -> RuntimeFacts:
    """The runtime that it was measured with. Where the latency was predicted: on the target the target's own, which
    builds its engine at this first load; elsewhere the processor, with a warning.
    """
    target = manifest.target
    if target.device == "cpu" or manifest.runtime.settings.get("provider", "cpu") != "cpu":
        return manifest.runtime
    if manifest.runtime.name != "onnxruntime":
        return manifest.runtime
    if machine.cuda_devices():
        return RuntimeFacts(name=target.runtime, settings=_ON_A_GPU.get(target.runtime, {}))
    warnings.warn(f"this bundle is for {target.name}, which is not here: it runs on the processor", stacklevel=3)
    return manifest.runtime


class Bundle:
    """An open engine and its manifest. A context manager; closing twice is harmless."""

    def __init__(self, path: Path, manifest: Manifest, runner: Runner) -> None:
        self.path = path
        self.manifest = manifest
        self._runner = runner

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name, for one array an input: (rows, ...), of the manifest's dtypes and shapes.

        Raises BadInput naming the input that is missing, unknown, or of another shape or dtype.
        """
        specs = {spec.name: spec for spec in self.manifest.inputs}
        if wrong := set(inputs) ^ set(specs):
            raise BadInput(f"inputs {', '.join(sorted(wrong))} do not match", f"this bundle takes {', '.join(specs)}")
        feeds = {name: _checked(np.asarray(inputs[name]), spec) for name, spec in specs.items()}
        try:
            outputs = self._runner.run(feeds)
        except Problem as problem:
            raise BadInput(problem.reason, problem.hint) from problem
        return {spec.name: value for spec, value in zip(self.manifest.outputs, outputs, strict=True)}

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """Outputs in order, for inputs in the manifest's order."""
        names = [spec.name for spec in self.manifest.inputs]
        if len(inputs) != len(names):
            raise BadInput(f"{len(inputs)} inputs were given", f"this bundle takes {len(names)}: {', '.join(names)}")
        return tuple(self.run(dict(zip(names, inputs, strict=True))).values())

    def close(self) -> None:
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(values: Array, spec: TensorSpec) -> Array:
    """`values` in the dtype and memory order that the engine wants; no value is changed by it."""
    wanted = np.dtype(spec.dtype)
    if values.dtype != wanted and not (
        np.can_cast(values.dtype, wanted, "same_kind") and values.dtype.kind == wanted.kind
    ):
        raise BadInput(f"input {spec.name!r} is {values.dtype}", f"it must be {spec.dtype}")
    fits = len(values.shape) == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, values.shape, strict=True)
    )
    if not fits:
        raise BadInput(f"input {spec.name!r} has shape {values.shape}", f"it must be {spec.shape}")
    return np.ascontiguousarray(values, dtype=wanted)
