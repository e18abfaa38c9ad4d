"""CompileCheck: whether TensorRT-RTX takes the graph that ships, for a GPU that is not here. Needs no GPU.

It tries the parser and the compiler, never a kernel, and it is not TensorRT: a reason to look, not to drop.
For Turing it has no FP32 matrix products; a graph that is refused for those alone is not judged.
"""

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import CompileCheck
from petra_deploy.core.outcome import Compiled
from petra_deploy.worker.backends import tensorrt_rtx
from petra_deploy.worker.context import Context

_TURING, _FP32_PRODUCTS = "7.5", "FP32 GEMM is not supported"


def run(job: CompileCheck, context: Context) -> Compiled:
    """Raises Problem "extra" without the package, "unsupported" for what it cannot judge."""
    refused = tensorrt_rtx.compile_check(context.store.path(job.engine.key) / "model.onnx", job.capability)
    if job.capability == _TURING and refused and all(said.endswith(_FP32_PRODUCTS) for said in refused):
        raise Problem("unsupported", "TensorRT-RTX has no FP32 matrix products there, and the graph has some")
    version = tensorrt_rtx.describe()["tensorrt_rtx"]
    return Compiled(compiler=f"TensorRT-RTX {version}", refused=refused)
