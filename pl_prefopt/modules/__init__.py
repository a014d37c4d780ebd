"""LightningModules, one per modality; each is imported when it is asked for, so no extra is needed that is not used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.modules.base import PreferenceModule
    from pl_prefopt.modules.image import ImagePreferenceModule
    from pl_prefopt.modules.reward import RewardModule
    from pl_prefopt.modules.text import TextPreferenceModule

_HOMES = {
    "ImagePreferenceModule": "image",
    "PreferenceModule": "base",
    "RewardModule": "reward",
    "TextPreferenceModule": "text",
}

__all__ = ["ImagePreferenceModule", "PreferenceModule", "RewardModule", "TextPreferenceModule"]

__getattr__ = exports(__name__, _HOMES)
