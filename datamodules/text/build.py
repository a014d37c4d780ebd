"""From source to `TokenizedRows`: parse, tokenise, truncate, write, count; kept under a key of all that matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.columns import SameColumns
from pl_prefopt.datamodules.files.readers import Row, Source
from pl_prefopt.datamodules.text.formats import Example, Text, parse, unused_columns
from pl_prefopt.datamodules.text.rows import TokenizedRow, TokenizedRows, write_rows
from pl_prefopt.datamodules.text.tokenize import Encoded, Encoder
from pl_prefopt.datamodules.text.truncate import Dropped, Truncation
from pl_prefopt.datamodules.tokenizers import Tokenizer, tokenizer_digest
from pl_prefopt.utilities.digests import json_digest
from pl_prefopt.utilities.files import create_folder, track
from pl_prefopt.utilities.rows import BadRow

ROWS_PER_CALL = 512
"""Rows that are handed to the tokenizer together."""
FATAL = frozenset({"no_chat_template"})
"""Reasons that stop even where bad rows are dropped, since they would drop every row."""
FORMAT = 3
"""Version of the stored rows; rows of another version are tokenised anew."""


@dataclass(frozen=True)
class TokenizeSettings:
    """All choices, beside content and tokenizer, that decide which ids come out."""

    truncation: Truncation = field(default_factory=Truncation)
    eos: str = "append"
    allow_empty_prompt: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    on_bad_row: str = "error"
    limit: int | None = None
    special_tokens: str = "escape"
    reversed_scores: str = "error"

    def encoder(self, tokenizer: Tokenizer) -> Encoder:
        """Return what tokenises under these settings."""
        return Encoder(
            tokenizer,
            eos=self.eos,
            allow_empty_prompt=self.allow_empty_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
            special_tokens=self.special_tokens,
        )


def tokenized(
    source: Source, tokenizer: Tokenizer, settings: TokenizeSettings, cache: Path, *, progress: bool = False
) -> TokenizedRows:
    """Return the tokenised rows of `source`, from the cache or computed now.

    Raises:
        ValueError: a row cannot be used (file, row, field, what is accepted, what was found), or none is left.
    """
    key = json_digest([FORMAT, source.digest(), tokenizer_digest(tokenizer), asdict(settings)])[:24]
    folder = cache / "rows" / key
    create_folder(folder, lambda work: tokenize(work, source, tokenizer, settings, progress=progress))
    return TokenizedRows(folder)


def tokenize(folder: Path, source: Source, tokenizer: Tokenizer, settings: TokenizeSettings, *, progress: bool) -> None:
    """Tokenise the rows of a source into a folder.

    Raises:
        ValueError: a row cannot be used, or none is left.
    """
    total = min(len(source), settings.limit or len(source))
    pipeline = RowPipeline(source, tokenizer, settings)
    pipeline.counts["read"] = total
    starts = range(0, total, ROWS_PER_CALL)
    title = f"tokenising {Path(source.name).name}"

    same_columns = SameColumns()

    def rows() -> Iterator[TokenizedRow]:
        raws = iter(source)
        for start in track(starts, title, size=lambda at: min(ROWS_PER_CALL, total - at), hidden=not progress):
            chunk = [(at, next(raws)) for at in range(start, min(start + ROWS_PER_CALL, total))]
            for at, ids, example in pipeline(chunk):
                try:
                    same_columns(example.numbers)
                except BadRow as error:
                    pipeline.refuse(error, at)
                else:
                    pipeline.counts["kept"] += 1
                    yield TokenizedRow(ids, example.numbers, at)

    if not write_rows(folder, rows(), pipeline.counts, pipeline.unused):
        raise ValueError(
            f"{source.name}: at least one row must be left, got none; counted: {dict(pipeline.counts)}. Look at "
            "truncation and on_bad_row."
        )
    same_columns.check_weights(source.name)


class RowPipeline:
    """Parse, tokenise and truncate rows; count what is dropped ("dropped/<reason>") or changed ("changed/<what>").

    `unused` are the columns that nothing has read.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, settings: TokenizeSettings) -> None:
        self.source, self.settings, self.bos = source, settings, tokenizer.bos_token_id
        self.counts: Counter[str] = Counter()
        self.unused: set[str] = set()
        self.encoder = settings.encoder(tokenizer)

    def __call__(self, raws: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, Encoded, Example]]:
        """Yield (row number, ids, example) for the rows that can be used."""
        numbers, examples = [], []
        for number, raw in raws:
            try:
                examples.append(self._parse(raw))
                numbers.append(number)
                self.unused |= unused_columns(raw, self.settings.columns, examples[-1])
            except BadRow as error:
                self.refuse(error, number)
        for number, example, row in zip(numbers, examples, self.encoder(examples), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise row
                row = self.settings.truncation(row, self.bos)
            except BadRow as error:
                self.refuse(error, number)
            except Dropped as reason:
                self.counts[f"dropped/{reason}"] += 1
            else:
                self.counts.update(f"changed/{event}" for event in row.events | example.events)
                yield number, row, example

    def refuse(self, error: BadRow, number: int) -> None:
        """Count a bad row, or raise for it."""
        dropped = self.settings.on_bad_row, error.reason == "reversed_scores" and self.settings.reversed_scores
        if "drop" not in dropped or error.reason in FATAL:
            raise error.at(self.source.where(number)) from None
        self.counts[f"dropped/{error.reason}"] += 1

    def _parse(self, raw: Row) -> Example:
        settings = self.settings
        return parse(
            raw,
            settings.columns,
            allow_empty_prompt=settings.allow_empty_prompt,
            keep_reversed=settings.reversed_scores == "keep",
        )


@dataclass
class StreamEncoder:
    """Encodes the rows of a stream: row number -> what `Collator` takes."""

    source: Source
    tokenizer: Tokenizer
    settings: TokenizeSettings

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> tuple[dict[int, dict[str, Any]], Counter[str]]:
        """Return the rows that can be used, and counts of what was dropped or changed."""
        pipeline = RowPipeline(self.source, self.tokenizer, self.settings)
        encoded = {
            number: {"index": number, "prompt_ids": ids.prompt, "completion_ids": ids.completions, **example.numbers}
            for number, ids, example in pipeline(rows)
        }
        return encoded, pipeline.counts


def example_texts(source: Source, columns: dict[str, str]) -> Iterator[str]:
    """Yield the texts of all rows that can be parsed, for training a tokenizer."""
    for raw in source:
        try:
            example = parse(raw, columns, allow_empty_prompt=True, keep_reversed=True)
        except BadRow:
            continue
        if isinstance(example.prompt, str):
            yield from (example.prompt + c for c in example.completions if isinstance(c, str))
        else:
            yield from (part for text in (example.prompt or "", *example.completions) for part in _parts(text))


def _parts(text: Text) -> list[str]:
    """The text, or roles and contents one by one, since chat templates write them on lines of their own."""
    return [text] if isinstance(text, str) else [str(turn[k]) for turn in text for k in ("role", "content")]
