"""The nearest known word to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar known word, None where none is similar enough for a suggestion to help.

    Case counts only between words that are equally similar without it. The beginning of a known word (from three
    letters on) is as good as a similar word: seed suggests seed_everything.
    """

    def likeness(candidate: str) -> tuple[float, float]:
        folded = difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio()
        if len(word) >= 3 and candidate.lower().startswith(word.lower()):
            folded = max(folded, cutoff)
        return folded, difflib.SequenceMatcher(None, word, candidate).ratio()

    best = max(sorted(known), key=likeness, default=None)
    return best if best is not None and best != word and likeness(best)[0] >= cutoff else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence "Did you mean 'x'?", empty where no known word is similar."""
    best = nearest(word, known)
    return f"Did you mean {best!r}?" if best else ""
