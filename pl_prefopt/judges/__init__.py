"""Judges: what gives samples of a policy their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.base import Judge, judged
    from pl_prefopt.judges.image import Aesthetic, OpenCLIP, PickScore
    from pl_prefopt.judges.image_rules import Colourfulness, Sharpness
    from pl_prefopt.judges.implicit import ImplicitReward
    from pl_prefopt.judges.rating import VerbalisedRating
    from pl_prefopt.judges.reasoning import R3, r3_filter, r3_scores, r3_weights
    from pl_prefopt.judges.reward_model import RewardModel
    from pl_prefopt.judges.rules import LengthJudge, NoRepeats, RegexJudge, WeightedSum

_HOMES = {
    "Aesthetic": "image",
    "Colourfulness": "image_rules",
    "ImplicitReward": "implicit",
    "Judge": "base",
    "LengthJudge": "rules",
    "NoRepeats": "rules",
    "OpenCLIP": "image",
    "PickScore": "image",
    "R3": "reasoning",
    "RegexJudge": "rules",
    "RewardModel": "reward_model",
    "Sharpness": "image_rules",
    "VerbalisedRating": "rating",
    "WeightedSum": "rules",
    "judged": "base",
    "r3_filter": "reasoning",
    "r3_scores": "reasoning",
    "r3_weights": "reasoning",
}
__all__ = [
    "R3",
    "Aesthetic",
    "Colourfulness",
    "ImplicitReward",
    "Judge",
    "LengthJudge",
    "NoRepeats",
    "OpenCLIP",
    "PickScore",
    "RegexJudge",
    "RewardModel",
    "Sharpness",
    "VerbalisedRating",
    "WeightedSum",
    "judged",
    "r3_filter",
    "r3_scores",
    "r3_weights",
]

__getattr__ = exports(__name__, _HOMES)
