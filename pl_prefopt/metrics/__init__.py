"""Metrics; the maths stands in `pl_prefopt.metrics.functional`."""

from pl_prefopt.metrics.means import ExactMeans
from pl_prefopt.metrics.win_rate import WinRate

__all__ = ["ExactMeans", "WinRate"]
