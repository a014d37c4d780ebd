"""A small language of reviews in which everything is known: the reward, the data distribution, every continuation.

A prompt names a topic, a continuation is one to `max_words` words. There are few enough of them to list them all, so
expected reward, KL and entropy of any language model on this world are exact sums (`pl_prefopt.demo.text.exact`).

Legend: N continuations, L = max_words, W = len(WORDS).
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from pl_prefopt.utilities.configurable import Configurable

PROMPT = "a review of the {}:"
FIXED = {"good": 2.0, "bad": -2.0}
CONTEXT = ("long", "quiet", "hot", "light", "cheap")
MODIFIERS = ("not", "very")
WORDS = (*FIXED, *CONTEXT, *MODIFIERS)
VERY = 1.5
STEP = 1.5
"""Valence of a context word whose sign is in `TOPICS`."""
TOPICS = {
    "battery": (+1, 0, -1, +1, -1),
    "queue": (-1, +1, -1, +1, 0),
    "soup": (0, 0, +1, -1, +1),
    "fan": (0, +1, -1, +1, -1),
    "party": (+1, -1, +1, -1, -1),
    "coat": (+1, 0, -1, +1, -1),
    "film": (-1, -1, +1, 0, +1),
    "ticket": (-1, 0, +1, -1, +1),
}
"""Signs of the words of `CONTEXT`: a long battery is good, a long queue is not."""
UNSEEN_TOPICS = {"lamp": (0, +1, -1, +1, 0), "flight": (-1, +1, 0, -1, +1)}
"""Topics of the supervised corpus that no preference pair is about."""
SIGNS = TOPICS | UNSEEN_TOPICS
OBJECTIVES = ("sentiment", "brevity", "restraint")


class SentimentWorld(Configurable):
    """All continuations of the language with their rewards and their probabilities in the data.

    sentiment(y | topic) = mean over opinion words of valence(word, topic), times -1 for every "not" and 1.5 for any
    "very" among the modifiers right before it; in [-3, 3], 0 without an opinion. It does not favour length. brevity
    falls linearly with the number of words from 1.5 to -1.5. restraint = 1.5 - 1.5 * (number of "very"), >= -1.5.

    Args:
        max_words: L, 2 to 5; there are W + ... + W^L continuations (7,380 for L = 4).
        held_out: share in (0, 1) of the continuations of two or more words that training rows never show.
        split_seed: which ones.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, max_words: int = 4, held_out: float = 0.2, split_seed: int = 0) -> None:
        if not 2 <= max_words <= 5:
            raise ValueError(f"max_words must be 2 to 5, so that all continuations can be listed; got {max_words}")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {held_out}")
        self.max_words = max_words
        self.held_out = held_out
        self.split_seed = split_seed

    @property
    def words(self) -> np.ndarray:
        """(N, L) word numbers, -1 behind the end; by length, then in the order of `WORDS`."""
        return _enumerate(self.max_words)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) number of words."""
        return (self.words >= 0).sum(1)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def held(self) -> np.ndarray:
        """(N,) bool, True for continuations that are kept for evaluation."""
        drawn = np.random.default_rng([self.split_seed, self.max_words]).random(len(self)) < self.held_out
        return drawn & (self.lengths >= 2)

    def prompt(self, topic: str) -> str:
        """Text of the prompt about a topic."""
        return PROMPT.format(topic)

    def text(self, index: int) -> str:
        """Text of a continuation; every word follows a space."""
        return "".join(f" {WORDS[w]}" for w in self.words[index] if w >= 0)

    def index(self, text: str) -> int:
        """Number of a continuation.

        Raises:
            ValueError: it is not a text of this language.
        """
        words = text.split()
        if not 1 <= len(words) <= self.max_words or any(w not in WORDS for w in words):
            raise ValueError(f"{text!r} is not one to {self.max_words} words of {', '.join(WORDS)}")
        position = 0
        for word in words:
            position = position * len(WORDS) + WORDS.index(word)
        return self.first(len(words)) + position

    def first(self, length: int) -> int:
        """Number of the first continuation of `length` words."""
        return sum(len(WORDS) ** n for n in range(1, length))

    def rewards(self, topic: str, objective: str = "sentiment") -> np.ndarray:
        """(N,) reward of every continuation.

        Args:
            topic: a key of `SIGNS`.
            objective: sentiment, brevity or restraint.
        """
        if objective == "sentiment":
            return _sentiment(self.max_words, topic)
        if objective == "brevity":
            return 1.5 - 3.0 * (self.lengths - 1) / (self.max_words - 1)
        if objective == "restraint":
            return np.maximum(1.5 - 1.5 * (self.words == WORDS.index("very")).sum(1), -1.5)
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")

    def reward(self, prompt: str, completion: str) -> float:
        """Sentiment of a text, also of one outside the language: other words are neither opinions nor modifiers."""
        topic = next((t for t in SIGNS if self.prompt(t) == prompt), None)
        if topic is None:
            raise ValueError(f"prompt {prompt!r} is not about a topic of this world: {', '.join(SIGNS)}")
        known = [WORDS.index(w) for w in completion.split() if w in WORDS]
        return float(mean_valence(np.array([known], dtype=np.int64), topic)[0]) if known else 0.0

    def probabilities(self, topic: str) -> np.ndarray:
        """(N,) probability of every continuation in the data, all > 0, sum 1: a bigram chain that favours no side."""
        return _generator(self.max_words, topic)


def valence(topic: str) -> np.ndarray:
    """(W,) valence of every word about a topic; 0 for modifiers."""
    signs = [STEP * s for s in SIGNS[topic]]
    return np.array([*FIXED.values(), *signs, *(0.0 for _ in MODIFIERS)])


def mean_valence(words: np.ndarray, topic: str) -> np.ndarray:
    """(n,) mean of modified valences over the opinions in word numbers (n, L), -1 = nothing."""
    values = valence(topic)
    total, count = np.zeros(len(words)), np.zeros(len(words))
    sign, strength = np.ones(len(words)), np.ones(len(words))
    for column in words.T:
        negates, stresses = (column == WORDS.index(m) for m in MODIFIERS)
        modifier = negates | stresses
        opinion = (column >= 0) & ~modifier
        total += np.where(opinion, sign * strength * values[column], 0.0)
        count += opinion
        sign = np.where(modifier, np.where(negates, -sign, sign), 1.0)
        strength = np.where(modifier, np.where(stresses, VERY, strength), 1.0)
    return total / np.maximum(count, 1.0)


@lru_cache(maxsize=8)
def _enumerate(longest: int) -> np.ndarray:
    blocks = []
    for n in range(1, longest + 1):
        grid = np.indices((len(WORDS),) * n).reshape(n, -1).T
        blocks.append(np.pad(grid, ((0, 0), (0, longest - n)), constant_values=-1))
    return np.concatenate(blocks).astype(np.int64)


@lru_cache(maxsize=64)
def _sentiment(longest: int, topic: str) -> np.ndarray:
    return mean_valence(_enumerate(longest), topic)


@lru_cache(maxsize=64)
def _generator(longest: int, topic: str) -> np.ndarray:
    words = _enumerate(longest)
    start, step, stop = chain(topic)
    out = start[words[:, 0]]
    for i in range(1, longest):
        before, here = words[:, i - 1], words[:, i]
        ended = before < 0
        out = out * np.where(ended, 1.0, np.where(here < 0, stop[before], (1 - stop[before]) * step[before, here]))
    return out


def chain(topic: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First-word (W,) and next-word (W, W) probabilities, and the probability (W,) of ending after a word."""
    weight = np.where(valence(topic) == 0, 0.5, 1.0)
    modifier = np.array([w in MODIFIERS for w in WORDS])
    weight[modifier] = 0.7
    step = np.repeat(weight[None], len(WORDS), 0)
    step[np.ix_(modifier, modifier)] = 0.15
    step[np.diag_indices(len(WORDS))] *= 0.3
    stop = np.where(modifier, 0.03, 0.4)
    return weight / weight.sum(), step / step.sum(1, keepdims=True), stop
