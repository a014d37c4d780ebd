"""Preference pairs of images for diffusion, flow and masked autoregressive models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pl_prefopt.datamodules.base import settings_of
from pl_prefopt.datamodules.files.splits import Files, Splits
from pl_prefopt.datamodules.image.decode import conversions, image_kind
from pl_prefopt.datamodules.image.geometry import MOVED, Geometry, check_encodable
from pl_prefopt.datamodules.image.rows import ImagePairs
from pl_prefopt.datamodules.image.samples import write_images
from pl_prefopt.datamodules.image.stats import describe_images, image_statistics
from pl_prefopt.datamodules.media.datamodule import MediaPreferenceDataModule
from pl_prefopt.utilities.deprecation import moved_arguments


class Conditioner(Protocol):
    """The frozen side of an image model."""

    factor: int
    """Pixels per latent, along each side."""

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]: ...
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def fingerprint(self) -> str: ...


class ImageEncoder:
    """A conditioner as the media layer takes it: latents are the mean and standard deviation of the posterior."""

    def __init__(self, conditioner: Conditioner) -> None:
        self.conditioner = conditioner

    def encode_media(self, tensors: Tensor) -> dict[str, Tensor]:
        """Return `mean` and `std`, (N, C, h, w) each."""
        mean, std = self.conditioner.encode(tensors)
        return {"mean": mean, "std": std}

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Return what the conditioner gives."""
        return self.conditioner.encode_text(list(captions))

    def cut_captions(self, captions: Sequence[str]) -> int:
        """Return how many captions the text encoders read only in part; 0 where the conditioner cannot tell."""
        return getattr(self.conditioner, "cut_captions", lambda _: 0)(captions)

    def fingerprint(self) -> str:
        """Return the conditioner's key."""
        return self.conditioner.fingerprint()


class ImagePreferenceDataModule(MediaPreferenceDataModule):
    """Read image preferences in any common layout, check every image, and load pairs with shared crops and flips.

    After `setup`: `datasets` (name -> `ImagePairs`), `collate`, `stats(split)`, `images(split, index)`,
    `conditions(split)`. Under a Trainer whose module has a VAE and text encoders, their results are computed once and
    kept (`cache`). The batch is described in docs/image-data.md.

    Args:
        train: path of JSONL, JSON, Parquet, CSV or TSV, a folder, a hub name ("org/name:split"), or a list of these;
            or a dict name -> path of at least two sources.
        val: the same, or a dict name -> path for several sets, or a fraction in (0, 1) of the training captions, with
            all their pairs.
        test: like `val`, without the fraction.
        geometry: size, crop and flip of the images.
        ties: "drop" leaves out pairs labelled .5, "half" keeps them with preference_prob .5, "keep" trains them as if
            image 0 had won.
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
        drop_last: False keeps rows that do not fill an optimizer step (one device only).
        num_workers: worker processes per loader.
        seed: key of order, split, crops, flips and dropped captions, which depend on (seed, epoch, row) only.
        shuffle: False keeps the order of the file in every epoch.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) a file, row or image cannot be used.
    """

    rows_class = ImagePairs

    @moved_arguments(MOVED)
    def __init__(
        self,
        train: Files | dict[str, Files] | None = None,
        val: float | str | list[str] | dict[str, Files] | None = None,
        test: str | list[str] | dict[str, Files] | None = None,
        geometry: Geometry = Geometry(),  # noqa: B008  frozen
        ties: str = "drop",
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
        arguments = dict(locals())
        geometry = settings_of(geometry, Geometry)
        super().__init__(
            image_kind(conversions(convert)),
            geometry if geometry.seed is not None else replace(geometry, seed=seed),
            Splits(train, val, test, limit),
            ties=ties,
            caption_dropout=caption_dropout,
            folder=image_folder,
            cache=cache,
            cache_dir=cache_dir,
            cache_dtype=cache_dtype,
            encode_batch_size=encode_batch_size,
            buckets=geometry.buckets is not None,
            columns=columns,
            on_bad_row=on_bad_row,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            seed=seed,
            shuffle=shuffle,
        )
        self.save_arguments(arguments)

    @property
    def geometry(self) -> Geometry:
        """Size, crop and flip of the images, with the seed of the datamodule where it has none of its own."""
        assert isinstance(self.transform, Geometry)
        return self.transform

    def make_encoder(self, conditioner: Any) -> ImageEncoder:
        """Return the encoder of the module's conditioner.

        Raises:
            ValueError: sizes that its VAE would round or its network cannot take, or new crops every epoch.
        """
        module = getattr(self.trainer, "lightning_module", None)
        family = getattr(getattr(module, "policy_builder", None), "family", lambda: None)()
        check_encodable(self.geometry, conditioner.factor * getattr(family, "multiple", 1))
        return ImageEncoder(conditioner)

    def to_sample(self, tensor: Tensor) -> Tensor:
        """Return pixels in [0, 1]."""
        return tensor / 2 + 0.5

    def images(self, split: str, index: int) -> Tensor:
        """Return the chosen and the rejected image behind row `index` of a split, (2, 3, H, W) in [0, 1]."""
        return self.samples(split, index)

    def write_samples(self, root: Path, name: str, samples: Sequence[Tensor]) -> list[str]:
        """Write images (3, H, W) in [0, 1] as PNG files below `root`; return their paths from there."""
        return write_images(root, name, samples)

    def stats(self, split: str) -> dict[str, Any]:
        """Return counts, sizes, and what scaling and cropping do to the images of a split."""
        return image_statistics(self.datasets[split])

    def describe(self, name: str) -> str:
        """Return the statistics of a data set in a few lines of text."""
        return describe_images(name, self.stats(name))
