"""Convert a torch.export archive (.pt2) to ONNX. It is a program: it runs only where it is trusted.

Dynamic dimensions are the program's own; one that was exported for a fixed batch stays so, unless
`batch_axis.py` can free it.
"""

from pathlib import Path

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.onnx_file import input_specs, runner
from petra_deploy.worker.workload.torchscript import check, quiet
from petra_deploy.worker.workload.words import one_line

_HINT = "export the original module with torch.onnx.export, or give its state_dict with --model file.py:function"


def convert(path: Path, out: Path) -> None:
    """Load the archive, running what code it has, and write it as ONNX to `out`. Raises Problem."""
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as error:  # whatever its own code raises
        hint = "export it again with this version of PyTorch"
        raise Problem("input", f"opening {path.name} raised {one_line(error)}", hint) from error
    try:
        with quiet():
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
        if converted is None:
            raise RuntimeError("the exporter gave nothing")
        converted.save(str(out), external_data=False)
    except Exception as error:
        raise Problem("unsupported", f"{path.name} cannot be converted to ONNX: {one_line(error)}", _HINT) from error
    _compare(program, out)


def _compare(program: torch.export.ExportedProgram, out: Path) -> None:
    """Run both on the program's own example, or on made-up rows."""
    names = [spec.name for spec in input_specs(out)]
    arguments, keywords = program.example_inputs or ((), {})
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
    if len(leaves) != len(names):
        return
    feeds = {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}
    with torch.no_grad(), quiet():
        outputs = program.module()(*arguments, **keywords)
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    theirs = [(f"output {i}", tensor.detach().cpu().numpy()) for i, tensor in enumerate(tensors)]
    check(theirs, runner(out)(feeds), ".pt2")
