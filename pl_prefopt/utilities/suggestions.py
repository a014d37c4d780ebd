"""The nearest known word to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar known word, None where none is similar; case counts half."""

    def likeness(candidate: str) -> float:
        exact = difflib.SequenceMatcher(None, word, candidate).ratio()
        folded = difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio()
        return (exact + folded) / 2

    best = max(sorted(known), key=likeness, default=None)
    return best if best is not None and best != word and likeness(best) >= cutoff else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence "Did you mean 'x'?", empty where no known word is similar."""
    best = nearest(word, known)
    return f"Did you mean {best!r}?" if best else ""
