"""Metrics; the maths stands in `pl_prefopt.metrics.functional`."""

from pl_prefopt.metrics.means import ExactMeans

__all__ = ["ExactMeans"]
