"""Latents and text embeddings, computed once: by content of image and caption, over all ranks, resumable.

Legend: C, h, w channels and size of a latent; P images of a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pl_prefopt.datamodules.image.geometry import Frame
from pl_prefopt.datamodules.image.rows import ImagePairs
from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.datamodules.media.shards import ShardStore

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IMAGES_PER_SHARD = 256
TEXTS_PER_SHARD = 64
T = TypeVar("T")


class Encoder(Protocol):
    """The frozen side of a model."""

    factor: int

    def encode_text(self, captions: list[str]) -> Mapping[str, Tensor]: ...
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def fingerprint(self) -> str: ...


class Job(NamedTuple):
    """One image in one frame."""

    key: str
    rows: ImagePairs
    index: int
    which: int
    frame: Frame


class ImageCache:
    """Mean and standard deviation of latents per (image bytes, frame), and embeddings per caption.

    Args:
        folder: where the shards are.
        settings: what the values depend on beside image and caption: encoders, geometry, dtype.
        dtype: of stored latents, a key of `DTYPES`; they are read as float32.

    Raises:
        ValueError: the folder holds a cache of other settings; the message names each part that differs.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], dtype: str = "float32") -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps({**settings, "dtype": dtype}))
        self.dtype = DTYPES[dtype]
        self._check()
        self.latents = ShardStore(folder / "latents")
        self.texts = ShardStore(folder / "texts")

    def pair(self, digests: tuple[str, str], frame: Frame) -> dict[str, Tensor]:
        """Return `latents_mean` and `latents_std` (2, C, h, w) float32."""
        found = [self.latents.read(_image_key(d, frame, k)) for k, d in enumerate(digests)]
        return {f"latents_{n}": torch.stack([f[n].float() for f in found]) for n in ("mean", "std")}

    def text(self, caption: str) -> dict[str, Tensor]:
        """Return the embeddings of a caption: `prompt_embeds` (L, D) and so on."""
        return self.texts.read(_text_key(caption))

    def fill_texts(self, captions: Iterable[str], encoder: Encoder, share: Share, batch: int, shown: bool) -> None:
        """Encode the captions that are missing: this rank's share of the shards."""
        names = {_text_key(c): c for c in captions}
        parts = _cut(self.texts.missing(names), TEXTS_PER_SHARD)
        for keys in _tracked(parts[share.rank :: share.world_size], "text embeddings", shown):
            found = [encoder.encode_text([names[k] for k in some]) for some in _cut(keys, batch)]
            self.texts.write(keys, {n: torch.cat([f[n] for f in found]).cpu() for n in found[0]})

    def fill_latents(
        self, splits: Iterable[ImagePairs], encoder: Encoder, share: Share, batch: int, shown: bool
    ) -> None:
        """Encode the images that are missing, in every frame in which they can come: this rank's share.

        Raises:
            ValueError: latents that are not finite.
        """
        jobs = {job.key: job for rows in splits for job in _jobs(rows)}
        by_size: dict[Any, list[str]] = {}
        for key in self.latents.missing(jobs):
            by_size.setdefault(jobs[key].frame.size, []).append(key)
        cuts = [part for keys in by_size.values() for part in _cut(keys, IMAGES_PER_SHARD)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for keys in _tracked(cuts[share.rank :: share.world_size], "latents", shown):
                found = [self._encoded([jobs[k] for k in some], encoder, pool.map) for some in _cut(keys, batch)]
                mean, std = (torch.cat(values) for values in zip(*found, strict=True))
                self.latents.write(keys, {"mean": mean, "std": std})

    def refresh(self) -> None:
        """Read what other ranks have written."""
        self.latents.refresh()
        self.texts.refresh()

    def _encoded(
        self, jobs: list[Job], encoder: Encoder, over: Callable[..., Iterable[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        pixels = torch.stack(list(over(_pixels, jobs)))
        mean, std = (v.to("cpu", self.dtype) for v in encoder.encode(pixels))
        bad = ~(torch.isfinite(mean).flatten(1).all(1) & torch.isfinite(std).flatten(1).all(1))
        if bool(bad.any()):
            job = jobs[int(bad.nonzero()[0])]
            raise ValueError(
                f"{job.rows.where(job.index)}: the latents of an image are not finite in {mean.dtype}. Run the VAE in "
                "float32 (several overflow in half precision) and store with cache_dtype: float32 or bfloat16."
            )
        return mean, std

    def _check(self) -> None:
        path = self.folder / "key.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".key.{os.getpid()}")
            part.write_text(json.dumps(self.settings, indent=2))
            os.replace(part, path)
            return
        found = json.loads(path.read_text())
        wrong = [k for k in self.settings.keys() | found.keys() if found.get(k) != self.settings.get(k)]
        if wrong:
            told = "; ".join(f"{k}: cached {found.get(k)!r}, now {self.settings.get(k)!r}" for k in sorted(wrong))
            raise ValueError(
                f"cache_dir: {self.folder} holds latents of another {' and '.join(sorted(wrong))} ({told}). Delete the "
                "folder, name another one, or leave cache_dir out: then each setting gets a folder of its own."
            )


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return the name of the folder of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def _jobs(rows: ImagePairs) -> Iterator[Job]:
    for index in range(len(rows)):
        digests = rows.digests(index)
        for frame in rows.geometry.variants(rows.sizes(index), index):
            yield from (Job(_image_key(d, frame, k), rows, index, k, frame) for k, d in enumerate(digests))


def _pixels(job: Job) -> Tensor:
    return job.rows.pixels(job.index, job.frame, [job.which])[0]


def _image_key(digest: str, frame: Frame, which: int) -> str:
    return hashlib.sha256(f"{digest} {frame.key(which)}".encode()).hexdigest()[:24]


def _text_key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:24]


def _cut(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _tracked(parts: Sequence[Sequence[str]], title: str, shown: bool) -> Iterator[Sequence[str]]:
    from tqdm.auto import tqdm

    with tqdm(total=sum(map(len, parts)), desc=title, disable=not (shown and parts), leave=False) as bar:
        for part in parts:
            yield part
            bar.update(len(part))
