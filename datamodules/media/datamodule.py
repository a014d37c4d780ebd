"""Preference pairs of media files: what the datamodules of images, audio, point clouds and video share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from pl_prefopt.datamodules.base import PreferenceDataModule, RandomAccessRows
from pl_prefopt.datamodules.files.splits import Splits
from pl_prefopt.datamodules.loading.buckets import BucketBatches, BucketEvalBatches
from pl_prefopt.datamodules.loading.loader import BatchPlan, TrainPlan
from pl_prefopt.datamodules.media.cache import MediaCache, settings_key
from pl_prefopt.datamodules.media.collate import collate
from pl_prefopt.datamodules.media.kind import MediaEncoder, MediaKind, Transform
from pl_prefopt.datamodules.media.records import MediaSource
from pl_prefopt.datamodules.media.rows import TIES, MediaPairs, split_by_caption
from pl_prefopt.datamodules.media.scan import scan
from pl_prefopt.datamodules.media.write import write_media_pairs
from pl_prefopt.utilities.checks import choice, integer, within
from pl_prefopt.utilities.dtypes import DTYPES


class MediaPreferenceDataModule(PreferenceDataModule):
    """Reads pairs of media files, checks every file once, and keeps latents and text tensors in a cache.

    After `setup`: `datasets` (name -> `MediaPairs`), `collate`, `conditions(split)`, `samples(split, index)`. Under a
    Trainer whose module can encode, `latents_<name>` and text tensors take the place of decoded files.

    A modality gives a `MediaKind` and a `Transform`, and defines `write_samples`, `to_sample` where samples of a policy
    are not in the units of batches, and `describe`.

    Args:
        kind: how files are decoded.
        transform: how decoded files become tensors.
        splits: which files belong to which data set.
        ties: "drop" leaves out pairs labelled .5, "half" keeps them with preference_prob .5, "keep" trains them as if
            file 0 had won.
        caption_dropout: probability that a pair is trained with the caption "".
        folder: where relative paths of media files begin; None: the folder of the data file.
        cache: compute latents and text tensors once, where the module of the Trainer can.
        cache_dir: folder of what is kept; None: $PL_PREFOPT_CACHE or the user's cache folder.
        cache_dtype: "float32", "bfloat16" or "float16", of stored latents.
        encode_batch_size: files or captions that are encoded together.
        buckets: whether pairs of different buckets must not share a batch.
        columns: our column name -> the file's.
        on_bad_row: "error" or "drop".
        batch_size: pairs per device and micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        drop_last: False keeps rows that do not fill an optimizer step (one device only).
        num_workers: worker processes per loader.
        seed: key of order, split and dropped captions.
        shuffle: False keeps the order of the file in every epoch.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) a file or row cannot be used.
    """

    rows_class: type[MediaPairs] = MediaPairs

    def __init__(
        self,
        kind: MediaKind[Any],
        transform: Transform,
        splits: Splits,
        *,
        ties: str = "drop",
        caption_dropout: float = 0.0,
        folder: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        cache_dtype: str = "float32",
        encode_batch_size: int = 8,
        buckets: bool = False,
        columns: dict[str, str] | None = None,
        on_bad_row: str = "error",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.known_columns = kind.columns
        super().__init__(
            batch_size,
            eval_batch_size,
            length_buckets=False,
            drop_last=drop_last,
            num_workers=num_workers,
            seed=seed,
            shuffle=shuffle,
            splits=splits,
            columns=columns,
            on_bad_row=on_bad_row,
            cache_dir=cache_dir,
        )
        choice("ties", ties, TIES)
        choice("cache_dtype", cache_dtype, DTYPES)
        integer("encode_batch_size", encode_batch_size)
        within("caption_dropout", caption_dropout, 0, 1, open_high=True)
        if splits.sources and buckets:
            raise ValueError(f"buckets must be None with named sources in train, got the sources {splits.sources}")
        self.kind, self.transform, self.buckets = kind, transform, buckets
        self.ties, self.caption_dropout, self.folder = ties, caption_dropout, folder
        self.cache, self.cache_dtype, self.encode_batch_size = cache, cache_dtype, encode_batch_size
        self.shared_cache = cache_dir is None
        self.collate = partial(collate, media=kind.tensor)

    # ---- what a modality may define --------------------------------------------------------------------------------

    def make_encoder(self, conditioner: Any) -> MediaEncoder:
        """Return the encoder of the module's conditioner, after checking that it can take the tensors."""
        return conditioner

    def to_sample(self, tensor: Tensor) -> Tensor:
        """Return a tensor of a batch in the units of samples that a policy draws."""
        return tensor

    def describe(self, name: str) -> str:
        """Return what is to be logged about a data set."""
        rows = self.datasets[name]
        counts = ", ".join(f"{key} {value}" for key, value in rows.counts.items() if value)
        return f"{name}: {len(rows)} pairs ({counts})"

    # ---- rows ------------------------------------------------------------------------------------------------------

    def load_rows(self, name: str, *, progress: bool = False) -> MediaPairs:
        """Return the pairs of a data set; every file is decoded and checked, once."""
        on_bad_row, source = self.on_bad_row, MediaSource(self.source(name), self.kind, self.columns, self.folder)
        if name == "train" and self.splits.generated:  # written by rounds of sampling, beside the samples' folder
            on_bad_row, source = "drop", MediaSource(self.source(name), self.kind, above=1)
        folder, limit = self._folder("scans"), self.splits.limit(name)
        scanned = scan(source, on_bad_row=on_bad_row, limit=limit, folder=folder, progress=progress)
        options: dict[str, Any] = {"ties": self.ties, "caption_dropout": self.caption_dropout, "seed": self.seed}
        rows = self.rows_class(source, scanned, self.transform, **options)
        if not len(rows):
            raise ValueError(
                f"{name}: at least one pair must be left, got none; counted: {rows.counts}. Ties are kept with ties: "
                "half."
            )
        return rows if name == "train" else rows.without_randomness()

    def split_rows(self, rows: MediaPairs, fraction: float) -> tuple[MediaPairs, MediaPairs]:
        """Return (train, val): whole captions, drawn by the seed, for validation."""
        train, val = split_by_caption(rows.captions, fraction, self.seed)
        return rows.select(train), rows.select(val).without_randomness()

    def rows_opened(self, names: Sequence[str]) -> None:
        """Fill the cache, then log what the data sets hold."""
        self._fill_cache()
        for name in names:
            if not (name == "train" and self.splits.generated):
                rank_zero_info("%s", self.describe(name))
                if unused := self.datasets[name].unused:
                    rank_zero_info("%s: columns that are not used: %s", name, ", ".join(map(repr, unused)))

    def conditions(self, split: str = "train") -> list[str]:
        """Return the distinct captions of a split, in order; those of the given files, also after `replace_train`."""
        return list(dict.fromkeys(self.given_rows(split).captions))

    def truths(self, conditions: Sequence[str]) -> list[Tensor]:
        """Return the better sample of the first training pair of each caption, as it is seen in evaluation."""
        rows = self.given_rows("train").without_randomness()
        first = {caption: i for i, caption in reversed(list(enumerate(rows.captions)))}
        return [self.to_sample(rows.tensors(first[c], which=[0])[0]) for c in conditions]

    def samples(self, split: str, index: int) -> Tensor:
        """Return the chosen and the rejected sample behind row `index` of a split, (2, ...)."""
        return self.to_sample(self.datasets[split].tensors(index))

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...} as `<root>/<name>.jsonl`; return its path."""
        return write_media_pairs(root, name, rows)

    # ---- cache -----------------------------------------------------------------------------------------------------

    def _fill_cache(self) -> None:
        """Give every split latents and text tensors, where the module of the Trainer has a conditioner."""
        splits = [rows for rows in self.datasets.values() if rows.cache is None]
        builder = getattr(getattr(self.trainer, "lightning_module", None), "policy_builder", None)
        build = getattr(builder, "conditioner", None)
        if not self.cache or build is None or not splits:
            return
        assert self.trainer is not None
        strategy, share = self.trainer.strategy, self.share()
        encoder = self.make_encoder(build(strategy.root_device))
        settings = {"VAE and text encoders": encoder.fingerprint(), **self.transform.settings()}
        cache = MediaCache(self._encoded_folder(settings), settings, self.cache_dtype)
        strategy.barrier(f"{self.kind.item} cache opened")
        captions = [caption for rows in splits for caption in rows.captions]
        progress, batch = share.rank == 0, self.encode_batch_size
        self._count_cut_captions(encoder, captions)
        cache.fill_texts(["", *captions], encoder, share, batch, progress=progress)
        cache.fill_latents(splits, encoder, share, batch, progress=progress)
        strategy.barrier(f"{self.kind.item} cache filled")
        cache.refresh()
        for rows in splits:
            rows.cache = cache

    @rank_zero_only
    def _count_cut_captions(self, encoder: MediaEncoder, captions: Sequence[str]) -> None:
        """Warn of captions of which the text encoders read only the beginning, where the encoder can tell."""
        cut = getattr(encoder, "cut_captions", lambda _: 0)(list(dict.fromkeys(captions)))
        if cut:
            rank_zero_warn(f"{cut} captions are longer than the text encoders read; only their beginning counts")

    def _encoded_folder(self, settings: dict[str, Any]) -> Path:
        folder = self._folder("encoded")
        # a folder that the user named holds one cache, so that another setting is noticed instead of computed anew
        return folder / settings_key(settings | {"dtype": self.cache_dtype}) if self.shared_cache else folder

    def _folder(self, name: str) -> Path:
        return (self.cache_root / self.kind.several if self.shared_cache else self.cache_root) / name

    # ---- batches ---------------------------------------------------------------------------------------------------

    def train_plan(self, rows: RandomAccessRows) -> TrainPlan:
        """Return which training pairs form which batch; pairs of one batch are of one bucket."""
        if not self.buckets:
            return super().train_plan(rows)
        assert isinstance(rows, MediaPairs)
        options: dict[str, Any] = {"seed": self.seed, "shuffle": self.shuffle, "drop_last": self.drop_last}
        return BucketBatches(rows.buckets, self.batch_size, self.share(), accumulate=self.accumulate, **options)

    def eval_plan(self, name: str, rows: RandomAccessRows) -> BatchPlan:
        """Return which pairs of an evaluation set form which batch."""
        if not self.buckets:
            return super().eval_plan(name, rows)
        assert isinstance(rows, MediaPairs)
        return BucketEvalBatches(rows.buckets, self.eval_batch_size, self.share(), name=name)
