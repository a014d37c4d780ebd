"""Preference pairs and lists of the sentiment world, with the faults that real data have, by the dose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pl_prefopt.demo.text.world import OBJECTIVES, TOPICS, UNSEEN_TOPICS, WORDS, SentimentWorld

Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How rows are drawn and labelled; the arguments are described in `SentimentDataModule`."""

    labels: bool = True
    rows: int = 2000
    eval_rows: int = 500
    temperature: float = 1.0
    flip: float = 0.0
    length_bias: float = 0.0
    similarity: float = 0.0
    list_size: int = 2
    soft_labels: bool = False
    weights: dict[str, float] = field(default_factory=lambda: {"sentiment": 1.0})
    margins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (("flip", 0, 1), ("similarity", 0, 1), ("temperature", 0, np.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        for name, least in (("rows", 1), ("eval_rows", 1), ("list_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.list_size > 2 and self.similarity:
            raise ValueError("similarity is for pairs; set it to 0 or list_size to 2")
        unknown = (set(self.weights) | set(self.margins)) - set(OBJECTIVES)
        if unknown or not self.weights:
            raise ValueError(f"weights and margins name objectives of {', '.join(OBJECTIVES)}; got {sorted(unknown)}")

    @property
    def clean(self) -> Recipe:
        """The same without noise and bias: evaluation rows are labelled by the reward itself."""
        return Recipe(self.labels, self.rows, self.eval_rows, 0.0, list_size=self.list_size,
                      weights=self.weights, margins=self.margins, soft_labels=self.soft_labels)  # fmt: skip


def write_splits(folder: Path, world: SentimentWorld, recipe: Recipe, seed: int) -> None:
    """Write train.jsonl, val.jsonl, test_continuations.jsonl and test_topics.jsonl; same seed, same bytes."""
    topics = tuple(TOPICS) if recipe.labels else (*TOPICS, *UNSEEN_TOPICS)
    plan = {
        "train": (topics, False, recipe, recipe.rows),
        "val": (topics, True, recipe.clean, recipe.eval_rows),
        "test_continuations": (topics, True, recipe.clean, recipe.eval_rows),
        "test_topics": (tuple(UNSEEN_TOPICS), True, recipe.clean, recipe.eval_rows),
    }
    for number, (name, (about, held, how, count)) in enumerate(plan.items()):
        rows = draw_rows(world, about, how, count, held=held, rng=np.random.default_rng([seed, number]))
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def draw_rows(
    world: SentimentWorld, topics: tuple[str, ...], recipe: Recipe, count: int, *, held: bool, rng: np.random.Generator
) -> Iterator[Row]:
    """Rows about `topics` in turn, made of held-out continuations or of the others, never of both."""
    allowed = world.held if held else ~world.held
    draw = {topic: _Drawer(world, topic, recipe, allowed) for topic in topics}
    for i in range(count):
        topic = topics[i % len(topics)]
        yield _row(world, topic, draw[topic](rng), draw[topic].values, recipe, rng)


class _Drawer:
    """Draws continuations about one topic from the data distribution, within one side of the split."""

    def __init__(self, world: SentimentWorld, topic: str, recipe: Recipe, allowed: np.ndarray) -> None:
        self.world, self.topic, self.recipe = world, topic, recipe
        self.chances = np.where(allowed, world.probabilities(topic), 0.0)
        self.chances /= self.chances.sum()
        self.cumulative = np.cumsum(self.chances) / self.chances.sum()
        self.values = np.sum([w * world.rewards(topic, name) for name, w in recipe.weights.items()], axis=0)
        self.noise_free = recipe.labels and recipe.temperature == 0
        values = np.round(self.values[allowed], 9)
        different = len(np.unique(values)) if self.noise_free else len(values)
        if recipe.list_size > different:
            raise ValueError(
                f"list_size is {recipe.list_size}, but about {topic!r} only {different} continuations "
                f"{'of different reward ' if self.noise_free else ''}are on this side of the split; lower list_size or "
                "raise max_words"
            )

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """(K,) different continuations; without noise also of different reward, so that there is a right order."""
        while True:
            items = self._similar(rng) if rng.random() < self.recipe.similarity else self._independent(rng)
            if len(set(items.tolist())) == len(items) and not (self.noise_free and self._tie(items)):
                return items

    def _tie(self, items: np.ndarray) -> bool:
        return len(np.unique(np.round(self.values[items], 9))) < len(items)

    def _independent(self, rng: np.random.Generator) -> np.ndarray:
        return np.searchsorted(self.cumulative, rng.random(self.recipe.list_size), side="right")

    def _similar(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            first = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
            others = neighbours(self.world, first)
            weight = self.chances[others]
            if weight.sum() > 0:
                return np.array([first, rng.choice(others, p=weight / weight.sum())])


def neighbours(world: SentimentWorld, index: int) -> np.ndarray:
    """Numbers of the continuations of the same length that differ from this one in exactly one word."""
    length = int(world.lengths[index])
    position, size = index - world.first(length), len(WORDS)
    numbers = []
    for i in range(length):
        unit = size ** (length - 1 - i)
        word = position // unit % size
        numbers += [index + (other - word) * unit for other in range(size) if other != word]
    return np.array(numbers)


def preference_prob(recipe: Recipe, gap: np.ndarray | float, words: np.ndarray | float) -> np.ndarray:
    """P(first is labelled chosen): Bradley-Terry on reward gap plus length bias, then flipped labels.

    p = sigmoid((gap + length_bias * words) / temperature), result = (1 - flip) p + flip (1 - p).

    Args:
        recipe: temperature, length_bias and flip.
        gap: reward of the first minus that of the second.
        words: number of words of the first minus that of the second.
    """
    total = np.asarray(gap + recipe.length_bias * np.asarray(words), dtype=float)
    with np.errstate(over="ignore"):
        p = (np.sign(total) + 1) / 2 if recipe.temperature == 0 else 1 / (1 + np.exp(-total / recipe.temperature))
    return (1 - recipe.flip) * p + recipe.flip * (1 - p)


def _row(
    world: SentimentWorld, topic: str, items: np.ndarray, values: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> Row:
    row: Row = {"prompt": world.prompt(topic)}
    if not recipe.labels:
        return row | {"chosen": world.text(items[0]), "rejected": world.text(items[1])}
    utility = values[items] + recipe.length_bias * world.lengths[items]
    utility = utility + recipe.temperature * rng.gumbel(size=len(items))
    utility = -utility if rng.random() < recipe.flip else utility
    order = np.argsort(-utility)
    items = items[order]
    if recipe.list_size > 2:
        grades = np.clip((utility[order] + 3) / 6 * 5, 0, 4).astype(int)
        row |= {"completions": [world.text(i) for i in items], "relevance": grades.tolist()}
        return row | ({"margins": _margins(world, topic, items, recipe)} if recipe.margins else {})
    row |= {"chosen": world.text(items[0]), "rejected": world.text(items[1])}
    row |= {"chosen_reward": float(values[items[0]]), "rejected_reward": float(values[items[1]])}
    if recipe.soft_labels:
        words = world.lengths[items]
        row["preference_prob"] = float(
            preference_prob(recipe, values[items[0]] - values[items[1]], words[0] - words[1])
        )
    if recipe.margins:
        row["chosen_margins"], row["rejected_margins"] = _margins(world, topic, items, recipe)
    return row


def _margins(world: SentimentWorld, topic: str, items: np.ndarray, recipe: Recipe) -> list[list[float]]:
    """(K, M) rewards of the objectives in `margins`."""
    return np.stack([world.rewards(topic, name)[items] for name in recipe.margins], 1).tolist()
