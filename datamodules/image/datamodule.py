"""Preference pairs of images for diffusion, flow and masked autoregressive models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_prefopt.datamodules.base import Files, Loaders, PreferenceDataModule
from pl_prefopt.datamodules.files.checks import one_of, positive
from pl_prefopt.datamodules.files.splits import named_files, origins
from pl_prefopt.datamodules.image.decode import conversions
from pl_prefopt.datamodules.image.geometry import Geometry, check_divisible, result_sizes
from pl_prefopt.datamodules.image.rows import ImagePairs, collate, split_captions
from pl_prefopt.datamodules.image.stats import describe_images, image_statistics
from pl_prefopt.datamodules.loading.buckets import BucketBatches, BucketEvalBatches
from pl_prefopt.datamodules.media.cache import DTYPES, ImageCache, settings_key
from pl_prefopt.datamodules.media.records import COLUMNS, ImageSource
from pl_prefopt.datamodules.media.scan import scan
from pl_prefopt.datamodules.text.build import default_cache
from pl_prefopt.utilities.configurable import to_config

SPLITS = ("train", "val", "test")
TIES = ("drop", "half", "keep")
STAGES = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    None: SPLITS,
}


class ImagePreferenceDataModule(PreferenceDataModule):
    """Read image preferences in any common layout, check every image, and load pairs with shared crops and flips.

    After `setup`: `datasets` (name -> `ImagePairs`), `collate`, `stats(split)`, `conditions(split)`. Under a Trainer
    whose module has a VAE and text encoders, their results are computed once and kept (`cache`). The batch is described
    in docs/image-data.md.

    Args:
        train: path of JSONL, JSON, Parquet, CSV or TSV, a folder, a hub name ("org/name:split"), or a list of these;
            or a dict name -> path of at least two sources.
        val: the same, or a dict name -> path for several sets, or a fraction in (0, 1) of the training captions, with
            all their pairs.
        test: like `val`, without the fraction.
        resolution: pixels of the result: one number, or [height, width].
        ties: "drop" leaves out pairs labelled .5, "half" keeps them with preference_prob .5, "keep" trains them as if
            image 0 had won.
        crop: "shared-center" and "shared-random" fill the frame, "pad" keeps all of both images on a grey ground.
        flip: probability that both images of a pair are mirrored.
        crop_variants: different random crops of a pair; 0 means a new one every epoch, which cannot be cached.
        interpolation: "bilinear", "bicubic" or "lanczos".
        buckets: list of [height, width]; a pair gets the one of the nearest aspect ratio; "auto" makes multiples of 64
            of the area of `resolution`; None: all pairs have `resolution`.
        caption_dropout: probability that a pair is trained with the caption "".
        convert: kinds of images that are converted instead of refused: true, or a list of "alpha" (put on white),
            "cmyk", "16bit", "animated" (first frame).
        on_bad_row: "error" stops at the first row that cannot be used, "drop" leaves such rows out and counts them.
        columns: our column name -> the file's.
        image_folder: where relative image paths begin; None: the folder of the data file.
        cache: compute latents and text embeddings once, where the module of the Trainer can.
        cache_dir: folder of what is kept; None: $PL_PREFOPT_CACHE or the user's cache folder.
        cache_dtype: "float32", "bfloat16" or "float16", of stored latents.
        encode_batch_size: images or captions that are encoded together.
        limit: use only the first rows of each split; a number, or a dict split -> number.
        batch_size: pairs per device and micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        drop_last: False keeps rows that do not fill an optimiser step (one device only).
        num_workers: worker processes per loader.
        seed: key of order, split, crops, flips and dropped captions, which depend on (seed, epoch, row) only.
        shuffle: False keeps the order of the file in every epoch.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) a file, row or image cannot be used.
    """

    def __init__(
        self,
        train: Files | dict[str, Files] | None = None,
        val: float | str | list[str] | dict[str, Files] | None = None,
        test: str | list[str] | dict[str, Files] | None = None,
        resolution: int | list[int] = 512,
        ties: str = "drop",
        crop: str = "shared-center",
        flip: float = 0.0,
        crop_variants: int = 4,
        interpolation: str = "lanczos",
        buckets: str | list[list[int]] | None = None,
        caption_dropout: float = 0.0,
        convert: bool | list[str] = False,
        on_bad_row: str = "error",
        columns: dict[str, str] | None = None,
        image_folder: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        cache_dtype: str = "float32",
        encode_batch_size: int = 8,
        limit: int | dict[str, int] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, False, drop_last, num_workers, seed, shuffle)
        given = {k: to_config(v) for k, v in locals().items() if k not in ("self", "__class__")}
        self.save_hyperparameters(given, logger=False)
        one_of("ties", ties, TIES)
        one_of("on_bad_row", on_bad_row, ("error", "drop"))
        one_of("cache_dtype", cache_dtype, DTYPES)
        positive("encode_batch_size", encode_batch_size)
        positive("crop_variants", crop_variants + 1 if isinstance(crop_variants, int) else crop_variants)
        for name in columns or ():
            one_of("columns", name, COLUMNS)
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout: found {caption_dropout!r}; accepted: a probability in [0, 1).")
        self._limits: dict[str, Any] = limit if isinstance(limit, dict) else dict.fromkeys(SPLITS, limit)
        for name, value in self._limits.items():
            one_of("limit", name, SPLITS)
            positive("limit", value, none=True)
        sizes = result_sizes(resolution, buckets)
        if isinstance(train, dict) and buckets is not None:
            raise ValueError("buckets: found with named sources in train; accepted: one of the two.")
        self.geometry = Geometry(sizes, crop, flip, interpolation, crop_variants, seed)
        self.ties, self.caption_dropout, self.on_bad_row = ties, caption_dropout, on_bad_row
        self.convert = conversions(convert)
        self.columns, self.image_folder = columns or {}, image_folder
        self.cache, self.cache_dtype, self.encode_batch_size = cache, cache_dtype, encode_batch_size
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else None
        self._origins = origins(train) if isinstance(train, dict) else []
        self._files = named_files([path for _, path in self._origins] or train, val, test)
        self._val_fraction = float(val) if isinstance(val, (int, float)) else None
        self.datasets: dict[str, ImagePairs] = {}
        self._replaced: ImagePairs | None = None

    def prepare_data(self) -> None:
        """Decode and check all images, on one process per node; what was found is kept."""
        for name in self._files:
            self._load(name, progress=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the pairs of a stage and, under a Trainer whose module can encode, fill the cache."""
        wanted = STAGES[getattr(stage, "value", stage)]
        opened = [n for n in self._files if n.split("/")[0] in wanted and n not in self.datasets]
        found = {name: self._load(name) for name in opened}
        if self._val_fraction is not None and "val" in wanted and "val" not in self.datasets:
            whole = found.get("train") or self.datasets.get("train") or self._load("train")
            found["train"], found["val"] = split_captions(whole, self._val_fraction, self.seed)
        self.datasets |= {n: rows if n == "train" else rows.still() for n, rows in found.items()}
        self.collate = collate
        self._fill()
        for name in found:
            rank_zero_info("%s", describe_images(name, self.stats(name)))

    def conditions(self, split: str = "train") -> list[str]:
        """Return the distinct captions of a split, in order; those of the given files, also after `replace_train`."""
        return list(dict.fromkeys(self._given(split).captions))

    def truths(self, conditions: Sequence[str]) -> list[Tensor]:
        """Return the better image of the first training pair of each caption, (3, H, W) in [0, 1], as it is cropped."""
        rows = self._given("train").still()
        first = {caption: i for i, caption in reversed(list(enumerate(rows.captions)))}
        frames = {i: rows.geometry.frame(rows.sizes(i), 0, i) for i in (first[c] for c in conditions)}
        return [rows.pixels(first[c], frames[first[c]], [0])[0] / 2 + 0.5 for c in conditions]

    def replace_train(self, files: Files) -> None:
        """Train on the pairs of other files, in the standard columns; rows that cannot be used are left out.

        Their images may lie up to one folder above the file.
        """
        if self._files["train"] == files:
            return
        self._replaced = self._given("train")
        self._origins, self._files["train"] = [], files
        self.datasets["train"] = self._load("train", progress=self.share().rank == 0)
        self._fill()

    def images(self, split: str, index: int) -> Tensor:
        """Return the chosen and the rejected image behind row `index` of a split, (2, 3, H, W) in [0, 1]."""
        rows = self.datasets[split]
        return rows.pixels(index, rows.geometry.frame(rows.sizes(index), 0, index)) / 2 + 0.5

    def stats(self, split: str) -> dict[str, Any]:
        """Return counts, sizes, and what scaling and cropping do to the images of a split."""
        return image_statistics(self.datasets[split])

    def sources(self) -> dict[str, np.ndarray]:
        """Return name -> row ids of `datasets["train"]`, where `train` names its sources."""
        if not self._origins:
            return {}
        rows = self.datasets["train"]
        part = np.searchsorted(rows.source.ends, [rows.source_row(i) for i in range(len(rows))], side="right")
        owner = np.asarray([name for name, _ in self._origins])[part]
        return {name: np.flatnonzero(owner == name) for name, _ in self._origins}

    def _fill(self) -> None:
        """Give every split latents and embeddings, where the module of the Trainer has what they are made with."""
        splits = [rows for rows in self.datasets.values() if rows.moments is None]
        builder = getattr(getattr(self.trainer, "lightning_module", None), "policy_builder", None)
        build = getattr(builder, "conditioner", None)
        if not self.cache or build is None or not splits:
            return
        if self.geometry.random_crop and not self.geometry.crop_variants:
            raise ValueError(
                "crop_variants: found 0, a new crop every epoch, with cache: true; accepted: crop_variants >= 1 random "
                "crops per pair, or cache: false."
            )
        assert self.trainer is not None
        strategy, share = self.trainer.strategy, self.share()
        encoder = build(strategy.root_device)
        check_divisible(self.geometry.sizes, encoder.factor)
        settings = {"VAE and text encoders": encoder.fingerprint(), **self.geometry.settings()}
        cache = ImageCache(self._cache_folder(settings), settings, self.cache_dtype)
        strategy.barrier("image cache opened")
        captions = [c for rows in splits for c in rows.captions]
        shown, batch = share.rank == 0, self.encode_batch_size
        cache.fill_texts(["", *captions], encoder, share, batch, shown)
        cache.fill_latents(splits, encoder, share, batch, shown)
        strategy.barrier("image cache filled")
        cache.refresh()
        for rows in splits:
            rows.moments = cache

    def _make_train_loader(self) -> Any:
        if len(self.geometry.sizes) == 1:
            return super()._make_train_loader()
        rows, accumulate = self.datasets["train"], getattr(self.trainer, "accumulate_grad_batches", 1)
        options: dict[str, Any] = {"seed": self.seed, "shuffle": self.shuffle, "drop_last": self.drop_last}
        plan = BucketBatches(rows.buckets, self.batch_size, self.share(), accumulate=accumulate, **options)
        if plan.left_out:
            rank_zero_info(f"train: {plan.left_out} of {len(rows)} pairs do not fill a batch of one size or a step")
        return self._loader(rows, plan)

    def _eval_loaders(self, stage: str) -> Loaders:
        if len(self.geometry.sizes) == 1:
            return super()._eval_loaders(stage)
        size, share = self.eval_batch_size, self.share()
        loaders = []
        for name in self.names(stage):
            rows = self.datasets[name]
            loaders.append(self._loader(rows, BucketEvalBatches(rows.buckets, size, share, name=name)))
        return loaders[0] if len(loaders) == 1 else loaders

    def _cache_folder(self, settings: dict[str, Any]) -> Path:
        if self.cache_dir is not None:
            return self.cache_dir / "encoded"
        return default_cache() / "images" / "encoded" / settings_key(settings | {"dtype": self.cache_dtype})

    def _given(self, split: str) -> ImagePairs:
        """The rows of the given files, whatever has replaced them."""
        return self._replaced if split == "train" and self._replaced is not None else self.datasets[split]

    def _load(self, name: str, *, progress: bool = False) -> ImagePairs:
        limit, on_bad_row = self._limits.get(name.split("/")[0]), self.on_bad_row
        if name == "train" and self._replaced is not None:
            source, limit, on_bad_row = ImageSource(self._files[name], name, above=1), None, "drop"
        else:
            source = ImageSource(self._files[name], name, self.columns, self.image_folder)
        folder = (self.cache_dir or default_cache() / "images") / "scans"
        options: dict[str, Any] = {"convert": self.convert, "on_bad_row": on_bad_row}
        scanned = scan(source, **options, limit=limit, folder=folder, progress=progress)
        dropout = self.caption_dropout
        rows = ImagePairs(source, scanned, self.geometry, ties=self.ties, convert=self.convert, caption_dropout=dropout)
        if not len(rows):
            raise ValueError(f"{name}: no pair is left; counted: {rows.counts}. Ties are kept with ties: half.")
        return rows
