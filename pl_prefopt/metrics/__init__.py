"""Metrics with state, for evaluation over batches and ranks; their formulas are in `pl_prefopt.metrics.functional`."""

from pl_prefopt.metrics.exact_means import ExactMeans
from pl_prefopt.metrics.win_rate import WinRate

__all__ = ["ExactMeans", "WinRate"]
