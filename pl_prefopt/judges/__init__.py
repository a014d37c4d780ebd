"""Judges: what gives samples of a policy their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.base import Judge, judged
    from pl_prefopt.judges.implicit import ImplicitReward
    from pl_prefopt.judges.reasoning import R3, r3_filter, r3_scores, r3_weights
    from pl_prefopt.judges.reward_model import RewardModel
    from pl_prefopt.judges.rules import LengthJudge, NoRepeats, RegexJudge, WeightedSum

_HOMES = {
    "ImplicitReward": "implicit",
    "Judge": "base",
    "LengthJudge": "rules",
    "NoRepeats": "rules",
    "R3": "reasoning",
    "RegexJudge": "rules",
    "RewardModel": "reward_model",
    "WeightedSum": "rules",
    "judged": "base",
    "r3_filter": "reasoning",
    "r3_scores": "reasoning",
    "r3_weights": "reasoning",
}
__all__ = [
    "R3",
    "ImplicitReward",
    "Judge",
    "LengthJudge",
    "NoRepeats",
    "RegexJudge",
    "RewardModel",
    "WeightedSum",
    "judged",
    "r3_filter",
    "r3_scores",
    "r3_weights",
]

__getattr__ = exports(__name__, _HOMES)
