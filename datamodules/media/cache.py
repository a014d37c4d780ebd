"""Latents and text tensors, computed once: by content of file and caption, over all ranks, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.datamodules.media.collate import stack
from pl_prefopt.datamodules.media.kind import MediaEncoder, View
from pl_prefopt.datamodules.media.shards import ShardStore
from pl_prefopt.utilities.digests import json_digest
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.files import track, write_json

if TYPE_CHECKING:
    from pl_prefopt.datamodules.media.rows import MediaPairs

MEDIA_PER_SHARD = 256
TEXTS_PER_SHARD = 64
T = TypeVar("T")


class Job(NamedTuple):
    """One file under one view."""

    key: str
    rows: MediaPairs
    index: int
    which: int
    view: View


class MediaCache:
    """Latents per (bytes of a file, view), and text tensors per caption.

    Latents may have any number of dimensions and names; text tensors may be any, embeddings and masks among them.

    Args:
        folder: where the shards are.
        settings: what the values depend on beside file and caption: encoders, transform, dtype.
        dtype: of stored latents, "float32", "bfloat16" or "float16"; they are read as float32.

    Raises:
        ValueError: the folder holds a cache of other settings; the message names each part that differs.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], dtype: str = "float32") -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, "dtype": dtype}))
        self.dtype = dtype_named(dtype, "cache_dtype")
        self._check_settings()
        self.latents = ShardStore(folder / "latents")
        self.texts = ShardStore(folder / "texts")

    def pair(self, digests: tuple[str, str], view: View) -> dict[str, Tensor]:
        """Return `latents_<name>` (2, ...) float32 for each name that the encoder gave, for example `latents_mean`."""
        first, second = (self.latents.read(_media_key(digest, view, k)) for k, digest in enumerate(digests))
        return {f"latents_{name}": torch.stack([first[name].float(), second[name].float()]) for name in first}

    def text(self, caption: str) -> dict[str, Tensor]:
        """Return the text tensors of a caption: `prompt_embeds` (L, D) and so on."""
        return self.texts.read(_text_key(caption))

    def fill_texts(
        self, captions: Iterable[str], encoder: MediaEncoder, share: Share, batch: int, *, progress: bool
    ) -> None:
        """Encode the captions that are missing: this rank's share of the shards."""
        by_key = {_text_key(caption): caption for caption in captions}
        parts = _parts(self.texts.missing(by_key), TEXTS_PER_SHARD)
        for keys in _share(parts, share, "text embeddings", progress=progress):
            encoded = [encoder.encode_text([by_key[k] for k in some]) for some in _parts(keys, batch)]
            masked = any(value.dtype == torch.bool for value in encoded[0].values())
            # text encoders may pad to the longest caption of a call, so lengths differ from call to call
            rows = {name: [row for part in encoded for row in part[name].cpu()] for name in encoded[0]}
            self.texts.write(keys, {name: stack(name, values, masked=masked) for name, values in rows.items()})

    def fill_latents(
        self, splits: Iterable[MediaPairs], encoder: MediaEncoder, share: Share, batch: int, *, progress: bool
    ) -> None:
        """Encode the files that are missing, under every view that can come: this rank's share of the shards.

        Raises:
            ValueError: latents that are not finite.
        """
        jobs = {job.key: job for rows in splits for job in _jobs(rows)}
        by_size: dict[Any, list[str]] = {}
        for key in self.latents.missing(jobs):
            by_size.setdefault(jobs[key].view.size, []).append(key)
        parts = [part for keys in by_size.values() for part in _parts(keys, MEDIA_PER_SHARD)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for keys in _share(parts, share, "latents", progress=progress):
                encoded = [self._encoded([jobs[k] for k in some], encoder, pool.map) for some in _parts(keys, batch)]
                self.latents.write(keys, {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]})

    def refresh(self) -> None:
        """Read what other ranks have written."""
        self.latents.refresh()
        self.texts.refresh()

    def _encoded(
        self, jobs: Sequence[Job], encoder: MediaEncoder, concurrently: Callable[..., Iterable[Tensor]]
    ) -> dict[str, Tensor]:
        tensors = torch.stack(list(concurrently(_tensor, jobs)))
        latents = {name: value.to("cpu", self.dtype) for name, value in encoder.encode_media(tensors).items()}
        for value in latents.values():
            finite = torch.isfinite(value).flatten(1).all(1)
            if not bool(finite.all()):
                job = jobs[int((~finite).nonzero()[0])]
                raise ValueError(
                    f"{job.rows.where(job.index)}: latents must be finite, got some that are not finite in "
                    f"{value.dtype}. Run the VAE in float32 (several overflow in half precision) and store with "
                    "cache_dtype: float32 or bfloat16."
                )
        return latents

    def _check_settings(self) -> None:
        path = self.folder / "key.json"
        if not path.is_file():
            write_json(path, self.settings, indent=2)
            return
        stored: dict[str, Any] = json.loads(path.read_text())
        names = sorted(stored.keys() | self.settings.keys())
        differing = [name for name in names if stored.get(name) != self.settings.get(name)]
        if differing:
            details = "; ".join(
                f"{name}: cached {stored.get(name)!r}, now {self.settings.get(name)!r}" for name in differing
            )
            raise ValueError(
                f"cache_dir must hold latents of these settings, got {self.folder} with another "
                f"{' and '.join(differing)} ({details}). Delete the folder, name another one, or leave cache_dir out: "
                "then each setting gets a folder of its own."
            )


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return the name of the folder of these settings."""
    return json_digest(settings)[:24]


def _jobs(rows: MediaPairs) -> Iterator[Job]:
    for index in range(len(rows)):
        digests = rows.digests(index)
        for view in rows.transform.variants(rows.sizes(index), index):
            yield from (Job(_media_key(d, view, k), rows, index, k, view) for k, d in enumerate(digests))


def _tensor(job: Job) -> Tensor:
    return job.rows.tensors(job.index, job.view, [job.which])[0]


def _media_key(digest: str, view: View, which: int) -> str:
    return hashlib.sha256(f"{digest} {view.key(which)}".encode()).hexdigest()[:24]


def _text_key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:24]


def _parts(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _share(parts: list[Sequence[str]], share: Share, title: str, *, progress: bool) -> Iterator[Sequence[str]]:
    """This rank's parts, with a progress bar."""
    return track(parts[share.rank :: share.world_size], title, unit="item", size=len, hidden=not progress)
