"""Labels of image pairs by a judge instead of people: AI feedback, computed once, offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.datamodules.files.checks import BadRow, one_of, positive
from pl_prefopt.datamodules.image.decode import conversions, decode
from pl_prefopt.datamodules.media.records import TIE, ImageSource, Record
from pl_prefopt.datamodules.media.scan import digest_of, refuse_same
from pl_prefopt.datamodules.media.write import WRITERS
from pl_prefopt.judges.base import Judge, judged


@dataclass(slots=True)
class _Row:
    record: Record
    data: list[bytes]
    images: list[Tensor]
    keys: list[tuple[str, str]]


def relabel_images(
    data: str | list[str],
    judge: Judge,
    out: str | Path,
    *,
    margin: float = 0.0,
    ties: str = "drop",
    batch_size: int = 16,
    columns: dict[str, str] | None = None,
    image_folder: str | None = None,
    convert: bool | list[str] = False,
    on_bad_row: str = "error",
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the pairs of `data` with the labels of a judge (2311.12908, section on AI feedback).

    The image with the higher score wins; scores are of the original pixels, before any scaling or cropping, and each
    (caption, image) is judged once. Labels of the file are ignored, but counted where they agree. A row of the result:
    `caption`, `image_0`, `image_1`, `label_0`, `score_0`, `score_1`, and the numbers of the file except
    `preference_prob`.

    Args:
        data: what `ImagePreferenceDataModule(train=...)` takes.
        judge: scores pictures (3, H, W) in [0, 1], each of its own size; higher is better.
        out: ends in .jsonl (images are named from its folder, copied to `images/` if they lie elsewhere) or .parquet
            (bytes inside).
        margin: >= 0, in units of the score; pairs whose scores differ by no more are ties.
        ties: "drop" leaves them out, "half" writes label .5; both count them.
        batch_size: pictures that are judged together.
        columns: our column name -> the file's.
        image_folder: where relative image paths begin.
        convert: kinds of images that are converted instead of refused.
        on_bad_row: "error" or "drop".
        limit: use only the first rows.
        overwrite: replace `out` if it is there.

    Returns:
        Counts: read, pairs (written), ties, agree and disagree (with labels of the file that are no ties), judged
        (pictures), dropped/<reason>.

    Raises:
        ValueError: an argument is out of range, a row cannot be used, or no pair is left.
    """
    path = _checked(Path(out), margin, ties, overwrite)
    positive("batch_size", batch_size)
    one_of("on_bad_row", on_bad_row, ("error", "drop"))
    source = ImageSource(data, "data", columns, image_folder)
    counts: Counter[str] = Counter(read=min(len(source), limit or len(source)))
    scores: dict[tuple[str, str], float] = {}
    with WRITERS[path.suffix](path) as writer:
        rows = _opened(source, counts, conversions(convert), on_bad_row)
        for group in _groups(rows, batch_size):
            _judge(group, judge, batch_size, scores)
            for row in group:
                for line, images in _pairs(row, scores, margin, ties, counts):
                    writer.add(line, images)
        if not counts["pairs"]:
            raise ValueError(
                f"margin: no pair is left at {margin}; counted: {dict(counts)}. Lower it, or set ties: half."
            )
    return {**counts, "judged": len(scores)}


def _checked(path: Path, margin: float, ties: str, overwrite: bool) -> Path:
    one_of("ties", ties, ("drop", "half"))
    if not margin >= 0:
        raise ValueError(f"margin: found {margin}; accepted: a number >= 0, in units of the judge's score.")
    if path.suffix not in WRITERS:
        raise ValueError(f"out: found the ending {path.suffix!r}; accepted: {', '.join(WRITERS)}.")
    if path.exists() and not overwrite:
        raise ValueError(f"out: {path} is there already; accepted: another name, or overwrite=True.")
    return path


def _opened(source: ImageSource, counts: Counter[str], convert: frozenset[str], on_bad_row: str) -> Iterator[_Row]:
    from tqdm.auto import trange

    for at in trange(counts["read"], desc="judging", unit="row", leave=False):
        try:
            yield _open(source, at, convert)
        except BadRow as error:
            if on_bad_row == "error":
                raise error.at(source.where(at)) from None
            counts[f"dropped/{error.reason}"] += 1


def _open(source: ImageSource, at: int, convert: frozenset[str]) -> _Row:
    record = source[at]
    data = [p.read() for p in record.pictures]
    digests = [digest_of(d) for d in data]
    refuse_same(digests, record)
    found = [decode(d, p.field, convert)[0] for d, p in zip(data, record.pictures, strict=True)]
    images = [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(i.height, i.width, 3) for i in found]
    return _Row(record, data, images, [(record.caption, d) for d in digests])


def _groups(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows with together at least `size` pictures."""
    group: list[_Row] = []
    for row in rows:
        group.append(row)
        if sum(len(r.images) for r in group) >= size:
            yield group
            group = []
    if group:
        yield group


def _judge(group: list[_Row], judge: Judge, size: int, scores: dict[tuple[str, str], float]) -> None:
    todo = {k: image for row in group for k, image in zip(row.keys, row.images, strict=True) if k not in scores}
    keys = list(todo)
    for start in range(0, len(keys), size):
        some = keys[start : start + size]
        samples = [todo[k].permute(2, 0, 1).float() / 255 for k in some]
        scores |= zip(some, judged(judge, [caption for caption, _ in some], samples).tolist(), strict=True)


def _pairs(
    row: _Row, scores: dict[tuple[str, str], float], margin: float, ties: str, counts: Counter[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    numbers = {k: v for k, v in row.record.numbers.items() if k != "preference_prob"}
    for p in row.record.preferences:
        i, j = sorted((p.first, p.second))
        gap = scores[row.keys[i]] - scores[row.keys[j]]
        label = TIE if abs(gap) <= margin else float(gap > 0)
        counts["ties"] += label == TIE
        if label == TIE and ties == "drop":
            continue
        if TIE not in (label, p.label):
            counts["agree" if label == float(p.first == i) else "disagree"] += 1
        counts["pairs"] += 1
        merits = {"label_0": label, "score_0": scores[row.keys[i]], "score_1": scores[row.keys[j]]}
        images = {f"image_{n}": (row.record.pictures[k], row.data[k]) for n, k in enumerate((i, j))}
        yield {"caption": row.record.caption, **merits, **numbers}, images
