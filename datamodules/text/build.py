"""From source to `TokenizedRows`: parse, tokenise, cut, write, count; kept on disk under a key of all that matters."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.checks import BadRow
from pl_prefopt.datamodules.files.readers import Source
from pl_prefopt.datamodules.text.formats import Example, Text, parse
from pl_prefopt.datamodules.text.rows import RowsWriter, TokenizedRows
from pl_prefopt.datamodules.text.tokenize import Encoded, Encoder
from pl_prefopt.datamodules.text.truncate import Dropped, Truncation
from pl_prefopt.datamodules.tokenizers import publish, tokenizer_digest

CHUNK = 512
FATAL = frozenset({"no_chat_template"})
FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """All choices, beside content and tokenizer, that decide which ids come out."""

    truncation: Truncation
    eos: str = "append"
    allow_empty_prompt: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    on_bad_row: str = "error"
    limit: int | None = None

    def encoder(self, tokenizer: Any) -> Encoder:
        """Return what tokenises under these settings."""
        return Encoder(
            tokenizer,
            eos=self.eos,
            allow_empty_prompt=self.allow_empty_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def key(self, source: Source, tokenizer: Any) -> str:
        """Return the name of the cache entry."""
        parts = [FORMAT, source.digest(), tokenizer_digest(tokenizer), asdict(self)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def default_cache(chosen: str | None = None) -> Path:
    """Return the data cache: `chosen`, else $PL_PREFOPT_CACHE, or pl_prefopt in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or os.environ.get("PL_PREFOPT_CACHE") or f"{base}/pl_prefopt").expanduser()


def generated_folder(cache_dir: str | None, kind: str, settings: Any) -> Path:
    """Return where files that were generated from these plain values belong."""
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
    return default_cache(cache_dir) / kind / name


def tokenized(
    source: Source, tokenizer: Any, settings: Settings, cache: Path, *, progress: bool = False
) -> TokenizedRows:
    """Return the tokenised rows of `source`, from the cache or made now.

    Raises:
        ValueError: a row cannot be used (file, row, field, what was found, what is accepted), or none is left.
    """
    folder = cache / "rows" / settings.key(source, tokenizer)
    if not (folder / "meta.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with RowsWriter(work) as writer:
                _write(writer, source, tokenizer, settings, progress)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        publish(work, folder)
    return TokenizedRows(folder)


def _write(writer: RowsWriter, source: Source, tokenizer: Any, settings: Settings, progress: bool) -> None:
    total = min(len(source), settings.limit or len(source))
    pipeline = RowPipeline(source, tokenizer, settings)
    for start, raws in _chunks(source, total, progress):
        for at, row, example in pipeline.chunk(start, raws):
            odd = writer.check_numbers(example.numbers)
            if odd is not None:
                error = BadRow(
                    "ragged_column",
                    odd,
                    "it in some rows only, or of another size",
                    "a column that all rows have alike",
                )
                pipeline.refuse(error, at)
            else:
                writer.add(row, example.numbers, at)
                pipeline.counts["kept"] = pipeline.counts.get("kept", 0) + 1
    writer.counts.update(pipeline.counts, read=total)
    if not pipeline.counts.get("kept"):
        raise ValueError(
            f"{source.name}: no row is left; counted: {pipeline.counts}. Look at max_length, truncation and on_bad_row."
        )


class RowPipeline:
    """Parse, tokenise and cut rows; count what is dropped ("dropped/<reason>") or changed ("changed/<what>")."""

    def __init__(self, source: Source, tokenizer: Any, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.counts: dict[str, int] = {}
        self.encoder = settings.encoder(tokenizer)

    def chunk(self, start: int, raws: list[dict[str, Any]]) -> Iterator[tuple[int, Encoded, Example]]:
        """Yield (row number, ids, example) for the rows of a chunk that begins at row `start`."""
        parsed = [(start + i, e) for i, raw in enumerate(raws) if (e := self._parse(start + i, raw)) is not None]
        for (at, example), row in zip(parsed, self.encoder([e for _, e in parsed]), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise row
                row = self.settings.truncation(row)
            except BadRow as error:
                self.refuse(error, at)
            except Dropped as reason:
                self._count(f"dropped/{reason}")
            else:
                for event in sorted(row.events):
                    self._count(f"changed/{event}")
                yield at, row, example

    def refuse(self, error: BadRow, at: int) -> None:
        """Count a bad row, or raise for it."""
        if self.settings.on_bad_row == "error" or error.reason in FATAL:
            raise error.at(self.source.where(at)) from None
        self._count(f"dropped/{error.reason}")

    def _parse(self, at: int, raw: dict[str, Any]) -> Example | None:
        try:
            return parse(raw, self.settings.columns, allow_empty_prompt=self.settings.allow_empty_prompt)
        except BadRow as error:
            self.refuse(error, at)
            return None

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def example_texts(source: Source, columns: dict[str, str]) -> Iterator[str]:
    """Yield the texts of all rows that can be parsed, for training a tokenizer."""
    for raw in source:
        try:
            example = parse(raw, columns, allow_empty_prompt=True)
        except BadRow:
            continue
        if isinstance(example.prompt, str):
            yield from (example.prompt + c for c in example.completions if isinstance(c, str))
        else:
            yield from (part for text in (example.prompt or "", *example.completions) for part in _parts(text))


def _parts(text: Text) -> list[str]:
    """The text, or roles and contents one by one, as chat templates set them on lines of their own."""
    return [text] if isinstance(text, str) else [str(t[k]) for t in text for k in ("role", "content")]


def plain(text: Text) -> str:
    """Return text as it is, turns as "role: content" lines."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{t['role']}: {t['content']}" for t in text)


def _chunks(source: Source, total: int, progress: bool) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    rows = iter(source)
    starts = range(0, total, CHUNK)
    for start in _tracked(starts, source.name) if progress else starts:
        yield start, [next(rows) for _ in range(min(CHUNK, total - start))]


def _tracked(starts: range, name: str) -> Iterator[int]:
    from rich.progress import track

    yield from track(starts, description=f"tokenising {Path(name).name}", transient=True)
