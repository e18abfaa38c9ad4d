"""Rates: what this processor attains on small graphs, for the file of a target.

In a process without torch, alone on the device and on one core, like every measurement.
"""

from pathlib import Path

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Backend, Runner
from petra_deploy.core.job import Rates
from petra_deploy.core.outcome import Attained
from petra_deploy.worker.context import Context
from petra_deploy.worker.measure import preflight, rates
from petra_deploy.worker.measure.lock import exclusive
from petra_deploy.worker.measure.probes import probes

_RUNTIME = "onnxruntime"  # whose graphs `rates` counts


def run(job: Rates, context: Context) -> Attained:
    """Raises Problem("unsupported") for another runtime than ONNX Runtime on a processor."""
    target = job.target
    if (target.runtime, target.device) != (_RUNTIME, "cpu"):
        raise Problem("unsupported", f"rates are measured with ONNX Runtime on a processor, not for {target.name}")
    backend: Backend = registry.find("backend", _RUNTIME)

    def open(folder: Path) -> Runner:
        return backend.open(folder, {"threads": target.threads})

    with exclusive(context.store.root, target.device, context.log), preflight.pinned(target.threads):
        return rates.fit(rates.measure(open, probes(), threads=target.threads, seconds=job.seconds, log=context.log))
