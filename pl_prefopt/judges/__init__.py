"""Judges: what gives samples of a policy their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.base import Judge, judged
    from pl_prefopt.judges.image import Aesthetic, OpenCLIP, PickScore
    from pl_prefopt.judges.image.rating import VerbalisedRating
    from pl_prefopt.judges.image.rules import Colourfulness, Sharpness
    from pl_prefopt.judges.text.implicit import ImplicitReward
    from pl_prefopt.judges.text.reasoning import R3, r3_filter, r3_scores, r3_weights
    from pl_prefopt.judges.text.reward_model import RewardModel
    from pl_prefopt.judges.text.rules import LengthJudge, NoRepeats, RegexJudge, WeightedSum

_HOMES = {
    "Aesthetic": "image.models",
    "Colourfulness": "image.rules",
    "ImplicitReward": "text.implicit",
    "Judge": "base",
    "LengthJudge": "text.rules",
    "NoRepeats": "text.rules",
    "OpenCLIP": "image.models",
    "PickScore": "image.models",
    "R3": "text.reasoning",
    "RegexJudge": "text.rules",
    "RewardModel": "text.reward_model",
    "Sharpness": "image.rules",
    "VerbalisedRating": "image.rating",
    "WeightedSum": "text.rules",
    "judged": "base",
    "r3_filter": "text.reasoning",
    "r3_scores": "text.reasoning",
    "r3_weights": "text.reasoning",
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
