"""Preference pairs and lists of text for language models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pl_prefopt.datamodules.base import PreferenceDataModule, settings_of
from pl_prefopt.datamodules.files.readers import Source
from pl_prefopt.datamodules.files.splits import Files, Splits, split_indices
from pl_prefopt.datamodules.loading.loader import PlannedLoader
from pl_prefopt.datamodules.loading.stream import Blocks, StreamLoader
from pl_prefopt.datamodules.text.build import StreamEncoder, TokenizeSettings, example_texts, tokenized
from pl_prefopt.datamodules.text.collate import Collator
from pl_prefopt.datamodules.text.formats import TEXT_COLUMNS, Example, as_text, parse, unused_columns
from pl_prefopt.datamodules.text.inspect import inspect_rows
from pl_prefopt.datamodules.text.literals import POLICIES
from pl_prefopt.datamodules.text.prompts import PromptBook
from pl_prefopt.datamodules.text.rows import TokenizedRows
from pl_prefopt.datamodules.text.stats import describe, notes, statistics
from pl_prefopt.datamodules.text.tokenize import Encoded
from pl_prefopt.datamodules.text.truncate import MOVED, Truncation
from pl_prefopt.datamodules.tokenizers import (
    PretrainedTokenizer,
    Tokenizer,
    TokenizerBuilder,
    TrainedTokenizer,
    check_tokenizer,
)
from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.deprecation import moved_arguments
from pl_prefopt.utilities.files import write_jsonl
from pl_prefopt.utilities.rows import BadRow


class TextPreferenceDataModule(PreferenceDataModule):
    """Read preference data in any common layout, tokenise it once, and load it in stateful, length-bucketed batches.

    After `setup`: `datasets` (name -> `TokenizedRows`; names "train", "val", "test", or "val/<name>" for several),
    `tokenizer`, `vocab_size`, `collate`, `texts(split, index)`, `stats(split)`. The batch is described in docs/data.md.

    Args:
        train: path of JSONL, JSON, Parquet, CSV or TSV, a folder, a hub name ("org/name:split"), or a list of these;
            or a dict name -> path of at least two sources, whose weights GroupInfluenceMixture may change.
        val: the same, or a dict name -> path for several sets, or a fraction in (0, 1) of the training rows.
        test: like `val`, without the fraction.
        tokenizer: hub name or folder, or a `TokenizerBuilder`; None: `TrainedTokenizer()` on the training rows.
        batch_size: rows per device and micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        truncation: how rows that are too long are made to fit.
        eos: "append" (each completion ends in EOS or in the chat template's end of turn) or "keep".
        allow_empty_prompt: an empty prompt becomes BOS instead of an error.
        columns: our column name -> the file's.
        chat_template: jinja text or the path of a file with it; replaces the tokenizer's.
        chat_template_kwargs: arguments for the chat template.
        on_bad_row: "error" stops at the first row that cannot be used, "drop" leaves such rows out and counts them.
        limit: use only the first rows of each split; a number, or a dict split -> number.
        length_buckets: group rows of similar length.
        drop_last: False keeps rows that do not fill an optimizer step (one device only).
        num_workers: worker processes per loader.
        seed: seed of order and split; the order of epoch e depends on (seed, e) only.
        streaming: tokenise training rows while they are read instead of storing them first; needs `max_steps`, has no
            length buckets, statistics or cached reference. Evaluation sets are always stored.
        shuffle_buffer: rows of a block that are shuffled together when streaming.
        cache_dir: folder of tokenised rows and trained tokenizers; None: $PL_PREFOPT_CACHE or the user's cache folder.
        shuffle: False keeps the order of the file in every epoch.
        special_tokens: what becomes of special tokens that stand literally in data, such as "<eos>" inside an answer:
            "escape" tokenises them as text and counts the rows, "allow" makes them special tokens (for data that were
            written with the tokenizer's markers), "error" refuses the row.
        reversed_scores: pairs whose own columns (`score_chosen` < `score_rejected`) say that the rejected completion is
            better: "error" stops, "drop" leaves them out, "keep" trains them as labelled; the last two are counted.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) a file or row cannot be used.
    """

    known_columns = TEXT_COLUMNS

    @moved_arguments(MOVED)
    def __init__(
        self,
        train: Files | dict[str, Files] | None = None,
        val: float | str | list[str] | dict[str, Files] | None = None,
        test: str | list[str] | dict[str, Files] | None = None,
        tokenizer: str | TokenizerBuilder | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        truncation: Truncation = Truncation(),  # noqa: B008  frozen
        eos: str = "append",
        allow_empty_prompt: bool = False,
        columns: dict[str, str] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        on_bad_row: str = "error",
        limit: int | dict[str, int] | None = None,
        length_buckets: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 4096,
        cache_dir: str | None = None,
        shuffle: bool = True,
        special_tokens: str = "escape",
        reversed_scores: str = "error",
    ) -> None:
        arguments = dict(locals())
        super().__init__(
            batch_size,
            eval_batch_size,
            length_buckets,
            drop_last,
            num_workers,
            seed,
            shuffle,
            splits=Splits(train, val, test, limit),
            columns=columns,
            on_bad_row=on_bad_row,
            cache_dir=cache_dir,
        )
        self.save_arguments(arguments)
        integer("shuffle_buffer", shuffle_buffer)
        choice("special_tokens", special_tokens, POLICIES)
        choice("reversed_scores", reversed_scores, ("error", "drop", "keep"))
        if streaming and (self.splits.fraction is not None or self.splits.sources):
            raise ValueError(
                f"train and val must be files without named sources or fraction with streaming, got train={train!r} "
                f"and val={val!r}"
            )
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.builder = PretrainedTokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer or TrainedTokenizer()
        self.chat_template = chat_template
        self._settings = TokenizeSettings(
            settings_of(truncation, Truncation),
            eos,
            allow_empty_prompt,
            self.columns,
            chat_template_kwargs or {},
            on_bad_row,
            special_tokens=special_tokens,
            reversed_scores=reversed_scores,
        )
        self._books: dict[str, PromptBook] = {}
        self._tokenizer: Tokenizer | None = None

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise all files into the cache, on one process per node."""
        super().prepare_data()
        _ = self.tokenizer  # needed for streamed files too, which are not read here

    def load_rows(self, name: str, *, progress: bool = False) -> TokenizedRows:
        """Return the tokenised rows of a data set, from the cache or computed now."""
        return tokenized(self.source(name), self.tokenizer, self._settings_of(name), self.cache_root, progress=progress)

    def split_rows(self, rows: TokenizedRows, fraction: float) -> tuple[TokenizedRows, TokenizedRows]:
        """Return (train, val): a share of the rows, drawn by the seed, for validation."""
        train, val = split_indices(len(rows), fraction, self.seed)
        return rows.select(train), rows.select(val)

    def rows_opened(self, names: Sequence[str]) -> None:
        """Log the statistics of new data sets, and choose the collator."""
        self._log_statistics([name for name in names if not (name == "train" and self.splits.generated)])
        ragged = any(rows.ragged for rows in self.datasets.values())
        self.collate = Collator(self.tokenizer.pad_token_id or 0, ragged=ragged)

    @rank_zero_only
    def _log_statistics(self, names: Sequence[str]) -> None:
        for name in names:
            rank_zero_info("%s", describe(name, self.stats(name)))
            for note in notes(self.datasets[name].counts, self.datasets[name].unused):
                rank_zero_info("%s: %s", name, note)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; built when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self._build_tokenizer()
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer can give, added tokens included."""
        return len(self.tokenizer)

    def texts(self, split: str, index: int) -> dict[str, Any]:
        """Return the original row behind row `index` of a split, as {"prompt", "completions"} in the common layout."""
        example = self._parser(split)(index)
        prompt = None if example.prompt is None else as_text(example.prompt)
        return {"prompt": prompt, "completions": [as_text(c) for c in example.completions]}

    def conditions(self, split: str = "train") -> list[str]:
        """Return the distinct prompts of a split, a conversation as the JSON text of its turns.

        Those of the files that the user named, also after `replace_train`.
        """
        return list(self._book(split).first)

    def truths(self, conditions: Sequence[str]) -> list[str]:
        """Return the chosen completion of the first training row of each prompt."""
        return [self._book("train").truth(c) for c in conditions]

    def prompt_ids(self, condition: str) -> list[int]:
        """Return the token ids that a prompt is sampled from: as in training, or as plain text where no row has it."""
        known = self._book("train").ids(condition) if "train" in self.datasets else None
        return known or self._settings.encoder(self.tokenizer).prompt_ids(condition)

    def write_samples(self, root: Path, name: str, samples: Sequence[str]) -> list[str]:
        """Return the texts themselves: they need no files."""
        return list(samples)

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...} as `<root>/<name>.jsonl`; return its path."""
        book = self._book("train")
        lines = ({**book.columns(r["condition"]), **{k: v for k, v in r.items() if k != "condition"}} for r in rows)
        return str(write_jsonl(root / f"{name}.jsonl", lines))

    def replace_train(self, files: Files) -> None:
        """Train on the rows of other files, in the standard columns; rows that cannot be used are left out."""
        if self.splits.files.get("train") != files:
            self._book("train")  # prompts and truths stay those of the present file, which is open only now
        super().replace_train(files)

    def inspect(self, split: str = "train", count: int = 3) -> str:
        """Return the first rows of a split as the model sees them: tokens, borders, what was cut, numbers.

        Args:
            split: name of a data set, for example "train" or "val/film".
            count: number of rows, >= 1.

        Raises:
            ValueError: no such data set, or it is streamed.
        """
        return inspect_rows(self, split, count)

    def encoded(self, split: str, index: int) -> Encoded:
        """Return row `index` of a split as token ids before truncation."""
        row = self._settings_of(split).encoder(self.tokenizer)([self._parser(split)(index)])[0]
        if isinstance(row, BadRow):
            raise row.at(self.where(split, index))
        return row

    def where(self, split: str, index: int) -> str:
        """Return file and row behind row `index` of a split."""
        generated = split == "train" and self.splits.generated
        source = self.source(split) if generated else self.given_source(split)
        return source.where(self.datasets[split].source_row(index))

    def stats(self, split: str) -> dict[str, Any]:
        """Return counts, token lengths, duplicates and contradictions of a split."""
        return statistics(self.datasets[split])

    def streams(self, name: str) -> bool:
        """Whether the rows of a data set are tokenised while they are read."""
        return self.streaming and name == "train"

    def make_train_loader(self) -> PlannedLoader | StreamLoader:
        """Return a loader of the training rows, at their beginning."""
        if not self.streaming:
            return super().make_train_loader()
        assert self.collate is not None, "setup must set collate"
        source, settings = self.source("train"), self._settings_of("train")
        self._log_unused(source, settings)
        encode = StreamEncoder(source, self.tokenizer, settings)
        return StreamLoader(
            Blocks(source, encode, self.shuffle_buffer, self.seed, settings.limit, self.share()),
            self.batch_size,
            self.collate,
            accumulate=self.accumulate,
            num_workers=self.num_workers,
            delivered=self._delivered if self.trainer is not None else None,
        )

    def _log_unused(self, source: Source, settings: TokenizeSettings) -> None:
        """Log the columns of a stream that nothing reads, judged by its first row."""
        try:
            raw = next(iter(source.iterate(0)), {})
            example = parse(raw, settings.columns, allow_empty_prompt=True, keep_reversed=True)
            unused = unused_columns(raw, settings.columns, example)
        except BadRow:
            return
        for note in notes({}, sorted(unused)):
            rank_zero_info("train: %s", note)

    def _delivered(self) -> int:
        """Batches of the epoch that the training loop has taken; it reads one ahead where the length is unknown."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _settings_of(self, name: str) -> TokenizeSettings:
        settings = replace(self._settings, limit=self.splits.limit(name))
        generated = name == "train" and self.splits.generated
        return replace(settings, columns={}, on_bad_row="drop") if generated else settings

    def _parser(self, split: str) -> Callable[[int], Example]:
        """Row number -> the parsed row, of the rows that the split has now."""
        generated = split == "train" and self.splits.generated
        source = self.source(split) if generated else self.given_source(split)
        rows, columns = self.datasets[split], {} if generated else self.columns
        return lambda index: parse(source[rows.source_row(index)], columns, allow_empty_prompt=True, keep_reversed=True)

    def _book(self, split: str) -> PromptBook:
        if self.streams(split):
            raise ValueError("streaming must be false for the rows of train to be listed, got true")
        if split not in self._books:
            self._books[split] = PromptBook(self.datasets[split], self._parser(split))
        return self._books[split]

    def _build_tokenizer(self) -> Tokenizer:
        source = self.source("train" if "train" in self.splits.files else next(iter(self.splits.files)))
        key = hashlib.sha256(f"{source.digest()} {sorted(self.columns.items())}".encode()).hexdigest()
        tokenizer = self.builder(lambda: example_texts(source, self.columns), key, self.cache_root)
        check_tokenizer(tokenizer, needs_eos=self._settings.eos == "append")
        if self.chat_template is not None:
            tokenizer.chat_template = _template(self.chat_template)
        return tokenizer


def _template(template: str) -> str:
    if "{" in template:
        return template
    if not Path(template).is_file():
        raise ValueError(f"chat_template must be a jinja template or the path of one, got no file {template!r}")
    return Path(template).read_text(encoding="utf-8")
