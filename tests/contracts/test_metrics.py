"""Every metric of ours keeps the contract."""

from petra_deploy.core import metrics
from petra_deploy.testing.contracts import MetricContract


class TestMetric(MetricContract):
    names = tuple(metrics.SPECS)
