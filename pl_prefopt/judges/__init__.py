"""Judges: what gives samples of a policy their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.base import Judge, judged
    from pl_prefopt.judges.rules import LengthJudge, NoRepeats, RegexJudge, WeightedSum

_HOMES = {
    "Judge": "base",
    "LengthJudge": "rules",
    "NoRepeats": "rules",
    "RegexJudge": "rules",
    "WeightedSum": "rules",
    "judged": "base",
}
__all__ = ["Judge", "LengthJudge", "NoRepeats", "RegexJudge", "WeightedSum", "judged"]

__getattr__ = exports(__name__, _HOMES)
