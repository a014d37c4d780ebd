"""One round of sampling on disk: pieces of a few conditions with their samples, and the pairs made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from pl_prefopt.utilities.files import Parts, write_json


class _Sampled(TypedDict):
    condition: str
    samples: list[str]
    """What `write_samples` of the datamodule returned, one text per sample."""


class SampledRow(_Sampled, total=False):
    """A condition with its samples and, where they were judged, a score for each; None for a sample without score."""

    scores: list[float | None]


class PairRow(TypedDict):
    """A pair of samples, as it is handed to `write_pairs` of the datamodule."""

    condition: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    round: int


class RoundFiles:
    """Pieces `<root>/round-<number>/piece-<index>.json`, each with the samples of `size` conditions.

    A piece written under another key (other weights, judge or settings) counts as missing.

    Args:
        root: folder of all rounds.
        number: number of the round, from 0.
        key: digest of everything that the samples and scores depend on.
        conditions: conditions of the round.
        size: conditions per piece, >= 1.
    """

    def __init__(self, root: Path, number: int, key: str, conditions: Sequence[str], size: int) -> None:
        self.root, self.number, self.key = root, number, key
        self.conditions = conditions
        self.parts = Parts(root / round_name(number), len(conditions), size, "piece-{part:05d}.json")

    def piece(self, index: int) -> list[str]:
        """Conditions of a piece."""
        return [self.conditions[i] for i in self.parts.items(index)]

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Missing pieces of this rank: those whose number is `rank` modulo `world_size`."""
        return [index for index in range(rank, len(self.parts), world_size) if self._read(index) is None]

    def write(self, index: int, rows: Sequence[SampledRow]) -> None:
        """Write a piece atomically."""
        write_json(self.parts.file(index), {"key": self.key, "rows": list(rows)})

    def rows(self) -> list[SampledRow]:
        """Read all pieces, in the order of the conditions; every rank must have written its own.

        Raises:
            ValueError: a missing piece.
        """
        rows: list[SampledRow] = []
        for index in range(len(self.parts)):
            piece = self._read(index)
            if piece is None:
                raise ValueError(
                    f"{self.parts.file(index)} is missing after all processes have sampled. The folder of the rounds "
                    "must be one that all processes share"
                )
            rows += piece
        return rows

    def _read(self, index: int) -> list[SampledRow] | None:
        file = self.parts.file(index)
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content["rows"] if content.get("key") == self.key else None


def round_name(number: int) -> str:
    """Folder of a round below the root."""
    return f"round-{number:03d}"


def is_usable(sample: object) -> bool:
    """Whether a sample can be trained on: not None, and no text of whitespace alone."""
    return bool(sample.strip()) if isinstance(sample, str) else sample is not None


def score_table(rows: Sequence[SampledRow]) -> Tensor:
    """Scores of judged rows, (N, K) float64; NaN where a sample has none."""
    values = [[float("nan") if score is None else score for score in row.get("scores", [])] for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def score_range(scores: Tensor) -> str:
    """Lowest and highest score as a phrase for messages."""
    known = scores[~scores.isnan()]
    return f"between {known.min():.4g} and {known.max():.4g}" if len(known) else "of no sample"


def pair_rows(rows: Sequence[SampledRow], pairs: Tensor, number: int) -> list[PairRow]:
    """Turn index triples into rows, without pairs of two equal samples.

    Args:
        rows: N judged rows.
        pairs: (P, 3) integers (row, chosen sample, rejected sample), as a `PairRule` returns them.
        number: number of the round.
    """
    out: list[PairRow] = []
    for n, chosen, rejected in pairs.tolist():
        samples, scores = rows[n]["samples"], rows[n].get("scores", [])
        if samples[chosen] != samples[rejected]:
            out.append(
                {
                    "condition": rows[n]["condition"],
                    "chosen": samples[chosen],
                    "rejected": samples[rejected],
                    "score_chosen": float(scores[chosen]),  # type: ignore[arg-type]
                    "score_rejected": float(scores[rejected]),  # type: ignore[arg-type]
                    "round": number,
                }
            )
    return out
