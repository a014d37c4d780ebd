"""Mixtures of data sources: their weights, and the influence of a source on held-out losses."""

from pl_prefopt.mixtures.influence import direct_mixture, group_influence, regression_mixture
from pl_prefopt.mixtures.sources import SourceSampler, SourceSchedule

__all__ = ["SourceSampler", "SourceSchedule", "direct_mixture", "group_influence", "regression_mixture"]
