"""Rounds of sampling and judging: which scored candidates become pairs, and the files of a round."""

from pl_prefopt.rounds.rules import AllPairs, BestWorst, PairRule, ThresholdGap, TruthAgainstWorst

__all__ = ["AllPairs", "BestWorst", "PairRule", "ThresholdGap", "TruthAgainstWorst"]
