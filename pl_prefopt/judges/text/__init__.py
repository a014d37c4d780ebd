"""Judges of texts."""

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.text.implicit import ImplicitReward
    from pl_prefopt.judges.text.reasoning import R3, r3_filter, r3_scores, r3_weights
    from pl_prefopt.judges.text.reward_model import RewardModel
    from pl_prefopt.judges.text.rules import LengthJudge, NoRepeats, RegexJudge, WeightedSum

__all__ = [
    "R3",
    "ImplicitReward",
    "LengthJudge",
    "NoRepeats",
    "RegexJudge",
    "RewardModel",
    "WeightedSum",
    "r3_filter",
    "r3_scores",
    "r3_weights",
]

__getattr__ = exports(
    __name__,
    {
        "ImplicitReward": "implicit",
        "R3": "reasoning",
        "r3_filter": "reasoning",
        "r3_scores": "reasoning",
        "r3_weights": "reasoning",
        "RewardModel": "reward_model",
        "LengthJudge": "rules",
        "NoRepeats": "rules",
        "RegexJudge": "rules",
        "WeightedSum": "rules",
    },
)
