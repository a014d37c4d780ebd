"""Labels of pairs by a judge instead of people: AI feedback, computed once, offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pl_prefopt.datamodules.media.records import TIE, MediaSource, Preference, Record
from pl_prefopt.datamodules.media.scan import digest_of, refuse_same
from pl_prefopt.datamodules.media.write import WRITERS, EncodedFile
from pl_prefopt.judges.base import Judge, judged
from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.files import track
from pl_prefopt.utilities.rows import BadRow


@dataclass(slots=True)
class _OpenRow:
    """A row whose files were read and decoded."""

    record: Record
    files: list[EncodedFile]
    samples: list[Tensor]
    keys: list[tuple[str, str]]
    """(caption, content key) of each file: what a judge's score depends on."""


@dataclass
class Relabeller:
    """Writes pairs with the labels of a judge; counts what happened.

    Args:
        source: the rows.
        judge: scores samples; higher is better.
        sample: turns a decoded file into what the judge takes.
        margin: >= 0, in units of the score; pairs whose scores differ by no more are ties.
        ties: "drop" leaves them out, "half" writes label .5; both count them.
        batch_size: samples that are judged together.
        on_bad_row: "error" or "drop".
        limit: use only the first rows.

    Raises:
        ValueError: an argument is out of range.
    """

    source: MediaSource
    judge: Judge
    sample: Callable[[Any], Tensor]
    margin: float = 0.0
    ties: str = "drop"
    batch_size: int = 16
    on_bad_row: str = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        choice("ties", self.ties, ("drop", "half"))
        choice("on_bad_row", self.on_bad_row, ("error", "drop"))
        integer("batch_size", self.batch_size)
        integer("limit", self.limit, optional=True)
        if not self.margin >= 0:
            raise ValueError(f"margin must be a number >= 0, in units of the judge's score, got {self.margin}")
        self.counts: Counter[str] = Counter(read=min(len(self.source), self.limit or len(self.source)))
        self.scores: dict[tuple[str, str], float] = {}

    def write(self, path: Path, *, overwrite: bool = False) -> dict[str, int]:
        """Write the pairs with the judge's labels.

        A row: `caption`, the two files, `label_0`, `score_0`, `score_1`, and the data columns of the row except
        `preference_prob`.

        Args:
            path: ends in .jsonl (files are named from its folder, copied if they lie elsewhere) or .parquet (bytes
                inside).
            overwrite: replace an existing file.

        Returns:
            Counts: read, pairs (written), ties, agree and disagree (with labels of the file that are no ties), judged
            (samples), dropped/<reason>.

        Raises:
            ValueError: another ending, an existing file, a row that cannot be used, or no pair is left.
        """
        choice("the ending of out", path.suffix, WRITERS)
        if path.exists() and not overwrite:
            raise ValueError(f"out must be a new file, or overwrite must be True, got {path}, which exists")
        with WRITERS[path.suffix](path) as writer:
            for group in self._groups():
                self._judge(group)
                for row in group:
                    for preference in row.record.preferences:
                        line = self._labelled(row, preference)
                        if line is not None:
                            writer.add(*line)
            if not self.counts["pairs"]:
                raise ValueError(
                    f"margin must leave at least one pair, got none at {self.margin}; counted: {dict(self.counts)}. "
                    "Lower it, or set ties: half."
                )
        return {**self.counts, "judged": len(self.scores)}

    def _groups(self) -> Iterator[list[_OpenRow]]:
        """Yield rows with together at least `batch_size` samples."""
        group: list[_OpenRow] = []
        for at in track(range(self.counts["read"]), "judging"):
            try:
                group.append(self._open(at))
            except BadRow as error:
                if self.on_bad_row == "error":
                    raise error.at(self.source.where(at)) from None
                self.counts[f"dropped/{error.reason}"] += 1
            if sum(len(row.samples) for row in group) >= self.batch_size:
                yield group
                group = []
        if group:
            yield group

    def _open(self, at: int) -> _OpenRow:
        record = self.source[at]
        data = [file.read() for file in record.files]
        digests = [digest_of(d) for d in data]
        refuse_same(digests, record)
        decoded = [self.source.kind.decode(d, file.field) for d, file in zip(data, record.files, strict=True)]
        files = [EncodedFile(f, d, c.suffix) for f, d, c in zip(record.files, data, decoded, strict=True)]
        keys = [(record.caption, digest) for digest in digests]
        return _OpenRow(record, files, [self.sample(c.media) for c in decoded], keys)

    def _judge(self, group: list[_OpenRow]) -> None:
        """Score what has not been scored yet, each (caption, file) once."""
        samples = {key: s for row in group for key, s in zip(row.keys, row.samples, strict=True)}
        missing = [key for key in samples if key not in self.scores]
        for start in range(0, len(missing), self.batch_size):
            keys = missing[start : start + self.batch_size]
            scores = judged(self.judge, [caption for caption, _ in keys], [samples[key] for key in keys])
            self.scores |= zip(keys, scores.tolist(), strict=True)

    def _labelled(self, row: _OpenRow, preference: Preference) -> tuple[dict[str, Any], dict[str, EncodedFile]] | None:
        """The line and the files of a pair, in the order of the row; None for ties that are left out."""
        i, j = sorted((preference.first, preference.second))
        gap = self.scores[row.keys[i]] - self.scores[row.keys[j]]
        label = TIE if abs(gap) <= self.margin else float(gap > 0)
        self.counts["ties"] += label == TIE
        if label == TIE and self.ties == "drop":
            return None
        if TIE not in (label, preference.label):
            self.counts["agree" if label == float(preference.first == i) else "disagree"] += 1
        self.counts["pairs"] += 1
        numbers = row.record.numbers_of(Preference(i, j, label))
        numbers.pop("preference_prob", None)
        scores = {"label_0": label, "score_0": self.scores[row.keys[i]], "score_1": self.scores[row.keys[j]]}
        files = {column: row.files[k] for column, k in zip(self.source.kind.pair, (i, j), strict=True)}
        return {"caption": row.record.caption, **scores, **numbers}, files
