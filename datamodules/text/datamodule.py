"""Preference pairs and lists of text for language models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pl_prefopt.datamodules.base import Files, PreferenceDataModule
from pl_prefopt.datamodules.files.checks import one_of, positive
from pl_prefopt.datamodules.files.open import JoinedSource, open_source
from pl_prefopt.datamodules.files.readers import Source
from pl_prefopt.datamodules.files.splits import named_files, origins, split_rows
from pl_prefopt.datamodules.loading.stream import Blocks, StreamLoader
from pl_prefopt.datamodules.media.samples import write_jsonl
from pl_prefopt.datamodules.text.build import Settings, default_cache, example_texts, plain, tokenized
from pl_prefopt.datamodules.text.collate import Collator
from pl_prefopt.datamodules.text.formats import COLUMNS, Example, parse
from pl_prefopt.datamodules.text.prompts import PromptBook
from pl_prefopt.datamodules.text.rows import TokenizedRows
from pl_prefopt.datamodules.text.stats import describe, statistics
from pl_prefopt.datamodules.text.truncate import Truncation
from pl_prefopt.datamodules.tokenizers import PretrainedTokenizer, TokenizerBuilder, TrainedTokenizer, check_tokenizer
from pl_prefopt.utilities.configurable import to_config

SPLITS = ("train", "val", "test")
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",), None: SPLITS}


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
        max_length: tokens of prompt + completion.
        max_prompt_length: tokens of the prompt; None limits it only where the whole is too long.
        prompt_truncation: "keep_end", "keep_start", "drop" or "error".
        completion_truncation: "keep_start", "keep_end", "drop" or "error".
        eos: "append" (each completion ends in EOS or in the chat template's end of turn) or "keep".
        allow_empty_prompt: an empty prompt becomes BOS instead of an error.
        columns: our column name -> the file's.
        chat_template: jinja text or the path of a file with it; replaces the tokenizer's.
        chat_template_kwargs: arguments for the chat template.
        on_bad_row: "error" stops at the first row that cannot be used, "drop" leaves such rows out and counts them.
        limit: use only the first rows of each split; a number, or a dict split -> number.
        length_buckets: group rows of like length.
        shuffle: False keeps the order of the file in every epoch.
        drop_last: False keeps rows that do not fill an optimiser step (one device only).
        num_workers: worker processes per loader.
        seed: seed of order and split; the order of epoch e depends on (seed, e) only.
        streaming: tokenise training rows on the way instead of storing them first; needs `max_steps`, has no length
            buckets, statistics or cached reference. Evaluation sets are always stored.
        shuffle_buffer: rows of a block that are shuffled together when streaming.
        cache_dir: folder of tokenised rows and trained tokenizers; None: $PL_PREFOPT_CACHE or the user's cache folder.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) a file or row cannot be used.
    """

    def __init__(
        self,
        train: Files | dict[str, Files] | None = None,
        val: float | str | list[str] | dict[str, Files] | None = None,
        test: str | list[str] | dict[str, Files] | None = None,
        tokenizer: str | TokenizerBuilder | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "keep_end",
        completion_truncation: str = "keep_start",
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
    ) -> None:
        super().__init__(batch_size, eval_batch_size, length_buckets, drop_last, num_workers, seed, shuffle)
        given = {k: to_config(v) for k, v in locals().items() if k not in ("self", "__class__")}
        self.save_hyperparameters(given, logger=False)
        one_of("on_bad_row", on_bad_row, ("error", "drop"))
        positive("shuffle_buffer", shuffle_buffer)
        for name in columns or ():
            one_of("columns", name, COLUMNS)
        for name, value in (limit if isinstance(limit, dict) else {"train": limit}).items():
            one_of("limit", name, SPLITS)
            positive("limit", value, none=True)
        if streaming and isinstance(val, (int, float)):
            raise ValueError(f"val: found the fraction {val} with streaming; accepted: files or dataset names.")
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.builder = PretrainedTokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer or TrainedTokenizer()
        self.chat_template = chat_template
        self.cache = default_cache(cache_dir)
        self._limits: dict[str, Any] = limit if isinstance(limit, dict) else dict.fromkeys(SPLITS, limit)
        if isinstance(train, dict) and (len(train) < 2 or streaming):
            raise ValueError(
                f"train: found sources {sorted(train)} with streaming={streaming}; accepted: at least two named "
                "sources without streaming, or a path or list of paths."
            )
        self._origins = origins(train) if isinstance(train, dict) else []
        self._files = named_files([path for _, path in self._origins] or train, val, test)
        self._val_fraction = float(val) if isinstance(val, (int, float)) else None
        truncation = Truncation(max_length, max_prompt_length, prompt_truncation, completion_truncation)
        self._settings = Settings(
            truncation, eos, allow_empty_prompt, columns or {}, chat_template_kwargs or {}, on_bad_row
        )
        self.datasets: dict[str, TokenizedRows] = {}
        self._sources: dict[str, Source] = {}
        self._books: dict[str, PromptBook] = {}
        self._replaced = False
        self._tokenizer: Any = None

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise all files into the cache, on one process per node."""
        for name in self._files:
            if not self._streamed(name):
                self._load(name, progress=True)
        assert self.tokenizer is not None

    def setup(self, stage: str | None = None) -> None:
        """Open the rows of a stage; rows that `prepare_data` has not made are made here."""
        wanted = STAGES[getattr(stage, "value", stage)]
        opened = [
            n for n in self._files if n.split("/")[0] in wanted and n not in self.datasets and not self._streamed(n)
        ]
        self.datasets |= {name: self._load(name) for name in opened}
        if self._val_fraction is not None and "val" in wanted and "val" not in self.datasets:
            whole = self.datasets.get("train") or self._load("train")
            self.datasets["train"], self.datasets["val"] = split_rows(whole, self._val_fraction, self.seed)
            opened = [*opened, "val"]
        self._report(opened)
        ragged = any(rows.ragged for rows in self.datasets.values())
        self.collate = Collator(self.tokenizer.pad_token_id, ragged=ragged)

    @rank_zero_only
    def _report(self, names: list[str]) -> None:
        for name in names:
            rank_zero_info("%s", describe(name, self.stats(name)))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; built when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self._built_tokenizer()
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer can give, added tokens included."""
        return len(self.tokenizer)

    def texts(self, split: str, index: int) -> dict[str, Any]:
        """Return the original row behind row `index` of a split, as {"prompt", "completions"} in the common layout."""
        example = self._parser(split)(index)
        prompt = None if example.prompt is None else plain(example.prompt)
        return {"prompt": prompt, "completions": [plain(c) for c in example.completions]}

    def conditions(self, split: str = "train") -> list[str]:
        """Return the distinct prompts of the given files of a split, a conversation as the JSON text of its turns."""
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
        return write_jsonl(root / f"{name}.jsonl", lines)

    def replace_train(self, files: Files) -> None:
        """Train on the rows of other files, in the standard columns; rows that cannot be used are left out."""
        if self._files["train"] == files:
            return
        self._book("train")
        self._replaced, self._origins = True, []
        self._files["train"] = files
        del self._sources["train"]
        self.datasets["train"] = self._load("train")

    def sources(self) -> dict[str, np.ndarray]:
        """Return name -> row ids of `datasets["train"]`, where `train` names its sources."""
        if not self._origins:
            return {}
        joined = self._source("train")
        assert isinstance(joined, JoinedSource)
        part = np.searchsorted(joined.ends, self.datasets["train"].source_rows, side="right")
        owner = np.asarray([name for name, _ in self._origins])[part]
        return {name: np.flatnonzero(owner == name) for name, _ in self._origins}

    def stats(self, split: str) -> dict[str, Any]:
        """Return counts, token lengths, duplicates and contradictions of a split."""
        return statistics(self.datasets[split])

    def _load(self, name: str, *, progress: bool = False) -> TokenizedRows:
        settings = self._settings_of(name)
        return tokenized(self._source(name), self.tokenizer, settings, self.cache, progress=progress)

    def _settings_of(self, name: str) -> Settings:
        truncation = replace(self._settings.truncation, bos=self.tokenizer.bos_token_id)
        settings = replace(self._settings, truncation=truncation, limit=self._limits.get(name.split("/")[0]))
        made = name == "train" and self._replaced
        return replace(settings, columns={}, limit=None, on_bad_row="drop") if made else settings

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = open_source(self._files[name], name, streaming=self._streamed(name))
        return self._sources[name]

    def _streamed(self, name: str) -> bool:
        return self.streaming and name == "train"

    def _make_train_loader(self) -> Any:
        if not self.streaming:
            return super()._make_train_loader()
        assert self.collate is not None
        source, settings = self._source("train"), self._settings_of("train")
        return StreamLoader(
            Blocks(source, self.tokenizer, settings, self.shuffle_buffer, self.seed),
            self.batch_size,
            self.collate,
            self.share(),
            accumulate=getattr(self.trainer, "accumulate_grad_batches", 1),
            num_workers=self.num_workers,
            delivered=self._delivered if self.trainer is not None else None,
        )

    def _delivered(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _parser(self, split: str) -> Callable[[int], Example]:
        """Row number -> the parsed row, of the rows that the split has now."""
        name = "train" if split == "val" and self._val_fraction is not None else split
        source, rows, columns = self._source(name), self.datasets[split], self._settings_of(name).columns
        return lambda index: parse(source[rows.source_row(index)], columns, allow_empty_prompt=True)

    def _book(self, split: str) -> PromptBook:
        if self._streamed(split):
            raise ValueError("train: streamed rows cannot be listed; accepted: streaming: false.")
        if split not in self._books:
            self._books[split] = PromptBook(self.datasets[split], self._parser(split))
        return self._books[split]

    def _built_tokenizer(self) -> Any:
        source = self._source("train") if "train" in self._files else self._source(next(iter(self._files)))
        columns = self._settings.columns
        key = hashlib.sha256(f"{source.digest()} {sorted(columns.items())}".encode()).hexdigest()
        tokenizer = self.builder(lambda: example_texts(source, columns), key, self.cache)
        check_tokenizer(tokenizer, needs_eos=self._settings.eos == "append")
        if self.chat_template is not None:
            tokenizer.chat_template = _template(self.chat_template)
        return tokenizer


def _template(given: str) -> str:
    if "{" in given:
        return given
    if not Path(given).is_file():
        raise ValueError(
            f"chat_template: no file {given!r}; accepted: the path of a jinja file, or the template itself."
        )
    return Path(given).read_text(encoding="utf-8")
