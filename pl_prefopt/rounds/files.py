"""One round of sampling on disk: pieces that are complete or absent, and the pairs made of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]


class RoundFiles:
    """`<root>/round-<number>/`: pieces of a few prompts with samples and scores, then the pairs.

    A piece made under another key (other weights, judge or settings) counts as absent.

    Args:
        root: folder of all rounds.
        number: of the round, from 0.
        key: what the samples and scores depend on.
        conditions: prompts of the round.
        size: prompts of a piece.
    """

    def __init__(self, root: Path, number: int, key: str, conditions: Sequence[str], size: int) -> None:
        self.root, self.number, self.key = root, number, key
        self.conditions = conditions
        self.pieces = [conditions[i : i + size] for i in range(0, len(conditions), size)]

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Pieces that this rank has to make."""
        return [i for i in range(rank, len(self.pieces), world) if self._piece(i) is None]

    def write(self, index: int, rows: Sequence[Row]) -> None:
        """Keep a piece: rows of {"condition", "samples": names, "scores": numbers or None}."""
        write_json(self._file(index), {"key": self.key, "rows": list(rows)})

    def rows(self) -> list[Row]:
        """The rows of all pieces, in the order of the prompts; every rank must have finished its own."""
        out: list[Row] = []
        for i in range(len(self.pieces)):
            piece = self._piece(i)
            if piece is None:
                raise ValueError(
                    f"{self._file(i)} is missing after all processes have sampled; the folder of the rounds must be "
                    "one that all of them see"
                )
            out += piece["rows"]
        return out

    def _file(self, index: int) -> Path:
        return self.root / round_name(self.number) / f"piece-{index:05d}.json"

    def _piece(self, index: int) -> dict[str, Any] | None:
        file = self._file(index)
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found if found.get("key") == self.key else None


def round_name(number: int) -> str:
    """Folder of a round below the root."""
    return f"round-{number:03d}"


def is_usable(sample: Any) -> bool:
    """Whether a sample can be trained on: a text without a visible character cannot."""
    return bool(sample.strip()) if isinstance(sample, str) else sample is not None


def score_table(rows: Sequence[Row]) -> Tensor:
    """(N, K) scores, NaN where a sample has none."""
    values = [[float("nan") if s is None else s for s in row["scores"]] for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def span(scores: Tensor) -> str:
    """Lowest and highest score, in words."""
    known = scores[~scores.isnan()]
    return f"between {known.min():.4g} and {known.max():.4g}" if len(known) else "of no sample"


def pair_rows(rows: Sequence[Row], pairs: Tensor, number: int) -> list[Row]:
    """Rows of pairs, without those of two equal samples."""
    out = []
    for n, i, j in pairs.tolist():
        samples, scores = rows[n]["samples"], rows[n]["scores"]
        if samples[i] != samples[j]:
            made = {"condition": rows[n]["condition"], "chosen": samples[i], "rejected": samples[j]}
            out.append({**made, "score_chosen": scores[i], "score_rejected": scores[j], "round": number})
    return out


def write_json(path: Path, value: Any) -> None:
    """Write JSON, the file complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


def digest(path: str | Path) -> str:
    """Key of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def progress(todo: Sequence[int], pieces: Sequence[Sequence[str]], title: str, *, hidden: bool) -> Iterator[int]:
    """Go through pieces with a bar that counts prompts."""
    from tqdm.auto import tqdm

    total = sum(len(pieces[i]) for i in todo)
    with tqdm(total=total, desc=title, unit="prompt", disable=hidden or not todo, leave=False) as bar:
        for i in todo:
            yield i
            bar.update(len(pieces[i]))
