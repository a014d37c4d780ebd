"""Judges: what gives samples of a policy their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.base import Judge, judged

_HOMES = {
    "Judge": "base",
    "judged": "base",
}
__all__ = ["Judge", "judged"]

__getattr__ = exports(__name__, _HOMES)
