"""Infer: the outputs of the very artifact that ships, on the machine that it ships to.

Of Scored this is the half that needs the runtime; the metric, which may be a user's own code, stays where
the driver is. Neither labels nor a metric are read here.
"""

from petra_deploy.core.job import Infer
from petra_deploy.core.outcome import Inferred
from petra_deploy.core.samples import Samples
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.score import infer, write_outputs


def run(job: Infer, context: Context) -> Inferred:
    """The outputs of all rows, in the store. Raises Problem "diverged" on NaN or Inf."""
    outputs = infer(job, Samples.open(context.store.path(job.split.key)), context)
    return Inferred(outputs=context.store.add(lambda folder: write_outputs(outputs, folder)))
