"""What a modality tells the media layer: how files are decoded, made alike, and encoded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from pl_prefopt.datamodules.files.columns import per

Media = TypeVar("Media")
Size = tuple[int, ...]
"""Extent of a decoded file: (height, width) of an image, (samples,) of audio, ..."""
Sizes = tuple[Size, Size]
"""Extents of both files of a pair."""


@dataclass(frozen=True, slots=True)
class Decoded(Generic[Media]):
    """The content of a file.

    Args:
        media: what `Transform.tensor` takes.
        size: its extent.
        changed: kinds of conversions that were needed, for the counts.
        suffix: ending of files of this format, without the dot.
    """

    media: Media
    size: Size
    changed: Sequence[str] = ()
    suffix: str = "bin"


@dataclass(frozen=True)
class MediaKind(Generic[Media]):
    """A kind of media files.

    Args:
        item: what one is called, for example "image". Rows name two of them in the columns `image_0` and `image_1`, or
            several in `images`.
        tensor: name under which batches hold the tensors, for example "pixels".
        decode: (bytes of a file, name of the column) -> content; raises `BadRow`. Must be picklable.
        settings: plain values on which the result of `decode` depends.
        aliases: our column name -> other names that files use for it.
        content: media -> the decoded values as bytes, to notice two files that differ only in their encoding; None
            compares files by their bytes alone.
    """

    item: str
    tensor: str
    decode: Callable[[bytes, str], Decoded[Media]]
    settings: object = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content: Callable[[Media], bytes] | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """Columns of two files, the better of which a label names."""
        return f"{self.item}_0", f"{self.item}_1"

    @property
    def several(self) -> str:
        """Column of a list of files."""
        return f"{self.item}s"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows may have."""
        media = ("caption", "chosen", "rejected", *self.pair, "label_0", self.several, "ranks", "scores")
        return tuple(dict.fromkeys((*media, *per("row"), *per("sample"))))


class View(Protocol):
    """One decision about both files of a pair, for example a crop."""

    @property
    def size(self) -> Hashable:
        """What the tensors' shape depends on; tensors of equal sizes are stacked."""
        ...

    def key(self, which: int) -> str:
        """Return all that decides the tensor of file `which` (0 or 1) beside its bytes."""
        ...

    def conditions(self) -> dict[str, Tensor]:
        """Return further conditions of the row, for example `time_ids` or a duration."""
        ...


class Transform(Protocol):
    """The rules by which decoded files become tensors: both of a pair by one view."""

    def view(self, sizes: Sizes, epoch: int, index: int) -> Any:
        """Return the `View` of pair `index` in `epoch`; it depends on nothing else."""
        ...

    def variants(self, sizes: Sizes, index: int) -> Sequence[Any]:
        """Return all views that `view` can give, without repetition: what a cache has to hold."""
        ...

    def tensor(self, media: Any, which: int, view: Any) -> Tensor:
        """Return the tensor of file `which` (0 or 1) of a pair."""
        ...

    def bucket(self, sizes: Sizes) -> int:
        """Return the number of the bucket of a pair; a batch holds one bucket."""
        ...

    def without_randomness(self) -> Transform:
        """Return the rules for evaluation."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what decides the tensors of cached variants, as plain values by name."""
        ...


class MediaEncoder(Protocol):
    """The frozen side of a model: media to latents, captions to embeddings."""

    def encode_media(self, tensors: Tensor) -> Mapping[str, Tensor]:
        """Return latents by name ("mean" and "std" of a posterior, or one of another name), each (N, ...)."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Return tensors by name (embeddings, masks), each (N, ...).

        Lengths may differ from call to call if one of the tensors is a boolean mask; the rest is then padded by 0.
        """
        ...

    def fingerprint(self) -> str:
        """Return a key of the weights."""
        ...
