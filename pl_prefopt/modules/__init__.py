"""LightningModules, one per modality; each is imported when it is asked for, so no extra is needed that is not used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pl_prefopt.modules.base import PreferenceModule
    from pl_prefopt.modules.text import TextPreferenceModule

_WHERE = {"PreferenceModule": "base", "TextPreferenceModule": "text"}

__all__ = ["PreferenceModule", "TextPreferenceModule"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
