"""Metrics as pure functions, one idea per file."""

from pl_prefopt.metrics.functional.ches import ches_score
from pl_prefopt.metrics.functional.frechet import frechet_distance
from pl_prefopt.metrics.functional.ndcg import ndcg
from pl_prefopt.metrics.functional.pairwise_accuracy import pairwise_accuracy
from pl_prefopt.metrics.functional.sequential_kl import sequential_kl

__all__ = ["ches_score", "frechet_distance", "ndcg", "pairwise_accuracy", "sequential_kl"]
