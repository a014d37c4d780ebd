"""Metrics as pure functions."""

from pl_prefopt.metrics.functional.distributions import frechet_distance
from pl_prefopt.metrics.functional.lists import ndcg
from pl_prefopt.metrics.functional.pairs import ches_score, pairwise_accuracy, sequential_kl

__all__ = ["ches_score", "frechet_distance", "ndcg", "pairwise_accuracy", "sequential_kl"]
