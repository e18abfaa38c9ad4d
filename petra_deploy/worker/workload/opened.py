"""Open the model of a loaded workload, in whichever process needs it.

    model = open_module(store, workload)        # forms "module" and "state_dict", and lifted graphs
    path = open_graph(store, workload)          # what came as a graph: an ONNX file

`open_graph` imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from petra_deploy.core.errors import Problem
from petra_deploy.core.files import read_json
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import Workload

if TYPE_CHECKING:
    from petra_deploy.worker.model.adapter import Adapter


def open_module(store: Store, workload: Workload) -> "Adapter":
    """A fresh copy of the user's module, or of what its graph was lifted into: eval mode, CPU, float32 weights."""
    from petra_deploy.worker.model.adapter import Adapter
    from petra_deploy.worker.model.lift import lift
    from petra_deploy.worker.workload.source import Source, make

    if not workload.has_layers:
        raise Problem("unsupported", f"a model given as {workload.form} is a graph, not a module of layers")
    folder = store.path(workload.model)
    if workload.is_graph:
        return lift(folder / "model.onnx", workload.signature, Samples.open(store.path(workload.calibration.key)))
    source = read_json(folder / "source.json", Source)
    module, _ = make(source, folder / source.file)
    return Adapter(module, source.names, source.call).eval()


def open_graph(store: Store, workload: Workload) -> Path:
    """The ONNX file of a workload that came as TorchScript, .pt2 or ONNX."""
    if not workload.is_graph:
        raise Problem("unsupported", f"a model given as {workload.form} is exported, not opened as a graph")
    return store.path(workload.model) / "model.onnx"
