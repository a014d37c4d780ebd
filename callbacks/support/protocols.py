"""What callbacks require of a LightningModule and of a datamodule, checked in `setup`.

A callback imports no module and no datamodule of the library. It names a protocol instead, of at most three members of
the module, so that it also serves in a LightningModule that knows nothing of the library.

Legend: B pairs, T and S positions of the chosen and of the rejected sample, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import lightning.pytorch as pl
from torch import Tensor, nn

P = TypeVar("P")
Batch = Any
"""What the loader of the module's own datamodule yields, already on the device; only the module looks inside."""
Sample = Any
"""A sample in the form that the module's own `sample` returns: a text, a tensor (3, H, W), ..."""
Samples = Sequence[Sequence[Sample]] | Tensor
"""Samples of each condition, as nested sequences or one tensor (conditions, samples, ...)."""
Row = Mapping[str, object]
"""A pair or a record of samples as it is written to JSON."""


class HasPolicy(Protocol):
    """A module with a trainable network."""

    policy: nn.Module


class HasReference(HasPolicy, Protocol):
    """A module with a reference: a `ReferenceNetwork`, or a network with the parameters of the policy."""

    reference: nn.Module


class HasLogratios(HasPolicy, Protocol):
    """A module that scores pairs."""

    def pair_logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log pi/pi_ref of the chosen and of the rejected samples, (B,) each, with gradient to the policy."""
        ...


class HasLosses(HasPolicy, Protocol):
    """A module that gives its loss for each pair."""

    def pair_losses(self, batch: Batch) -> Tensor:
        """Return the loss of each pair, (B,), with gradient to the policy."""
        ...


class HasHiddenStates(HasPolicy, Protocol):
    """A module that gives the features of both samples of a pair."""

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the features that feed the output layer: chosen (B, T, D), mask (B, T), rejected (B, S, D), mask."""
        ...


class HasSamples(HasPolicy, Protocol):
    """A module that samples from its policy."""

    def sample(self, conditions: Sequence[str], count: int, seed: int, /, **options: Any) -> Samples:
        """Return `count` samples per condition; the same for the same arguments."""
        ...


class HasMovingSamples(HasSamples, HasReference, Protocol):
    """A module that samples, and whose reference follows its policy."""


class HasPreview(Protocol):
    """A module that shows samples."""

    def preview(self, conditions: Sequence[str], seed: int) -> list[str] | list[list[str]] | Tensor:
        """Return one sample per condition, the same for the same seed.

        Texts: list of str. Ranked lists: list of lists of str. Images: (N, 3, H, W) or (N, 1, H, W) in [0, 1].
        Sounds: (N, T) in [-1, 1], at `sample_rate` of the module in Hz. Point clouds: (N, P, 3) in metres.
        """
        ...


@runtime_checkable
class Exports(Protocol):
    """A module that writes its weights itself."""

    def export(self, folder: Path) -> object:
        """Write the weights to an existing folder."""
        ...


@runtime_checkable
class SavesPretrained(Protocol):
    """A network or a tokenizer of peft, transformers or diffusers."""

    def save_pretrained(self, save_directory: Path, **options: Any) -> object:
        """Write what the library's own `from_pretrained` reads."""
        ...


@runtime_checkable
class MovingReference(Protocol):
    """A reference that says itself which of its parameters follow which of the policy."""

    def pairs(self, policy: nn.Module) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """Return (reference, policy) parameters; ValueError where this reference cannot move."""
        ...


@runtime_checkable
class HasDigest(Protocol):
    """Rows with a key of their content."""

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Return the key."""
        ...


class RandomAccessRows(Protocol):
    """Rows that have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class HasRows(Protocol):
    """A datamodule whose rows may be read in any order, outside of its loaders."""

    datasets: dict[str, RandomAccessRows]
    collate: Callable[[list[Any]], Batch]


class TrainsOnSamples(Protocol):
    """A datamodule whose training rows may be replaced by pairs of samples."""

    def write_samples(self, root: Path, name: str, samples: Sequence[Sample]) -> list[str]:
        """Write samples below `root` under names that begin with `name`; return a text for each, used in rows."""
        ...

    def write_pairs(self, root: Path, name: str, rows: Sequence[Row]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...}; return the path of the file."""
        ...

    def provide_train(self, files: Callable[[], str | list[str] | None] | None) -> None:
        """Call `files` for the training files whenever a training loader is made; None: keep the present files."""
        ...


class HasRounds(TrainsOnSamples, Protocol):
    """A datamodule for rounds of sampling and judging."""

    def conditions(self, split: str) -> list[str]:
        """Return the distinct conditions of the original files of a split."""
        ...


class HasTruths(HasRounds, Protocol):
    """A datamodule for rounds that also knows the ground truth of a condition."""

    def truths(self, conditions: Sequence[str]) -> Sequence[Sample]:
        """Return the ground truth of each condition, in the form of a sample."""
        ...


class CaptionedRows(RandomAccessRows, Protocol):
    """Rows with one condition each."""

    captions: list[str]


class HasImages(TrainsOnSamples, Protocol):
    """A datamodule for self-play: its rows hold real images and their captions."""

    datasets: dict[str, CaptionedRows]

    def images(self, split: str, index: int) -> Tensor:
        """Return the images of row `index` of a split, the chosen one first, (2, 3, H, W) in [0, 1]."""
        ...


def datamodule_of(trainer: pl.Trainer) -> object | None:
    """Return the datamodule of a run, None where loaders were given."""
    return getattr(trainer, "datamodule", None)  # an attribute that Lightning sets without declaring it


SIGNATURES = {
    "policy": "policy, the network that trains (nn.Module)",
    "reference": "reference, a ReferenceNetwork or a network with the parameters of the policy",
    "pair_logratios": "pair_logratios(batch) -> (chosen (B,), rejected (B,))",
    "pair_losses": "pair_losses(batch) -> (B,)",
    "pair_hidden_states": "pair_hidden_states(batch) -> (chosen (B, T, D), mask, rejected, mask)",
    "sample": "sample(conditions, count, seed, **options) -> `count` samples per condition",
    "preview": "preview(conditions, seed) -> one sample per condition",
    "datasets": 'datasets, {"train": rows, ...}',
    "collate": "collate(rows) -> batch",
    "conditions": "conditions(split) -> the distinct conditions of a split",
    "truths": "truths(conditions) -> the ground truth of each, in the form of a sample",
    "write_samples": "write_samples(root, name, samples) -> one text per sample",
    "write_pairs": "write_pairs(root, name, rows) -> path of the file",
    "provide_train": "provide_train(files), which calls `files` whenever a training loader is made",
    "images": "images(split, index) -> (2, 3, H, W) in [0, 1]",
}
"""How each member is called, for messages."""


def require(module: object, callback: object, protocol: type[P]) -> P:
    """Check that `module` has all members of a protocol; return it under that type.

    Raises:
        TypeError: naming each missing member and how it is called.
    """
    missing = [name for name in members(protocol) if getattr(module, name, None) is None]
    if missing:
        owner = type(module).__name__
        listed = " and ".join(f"{owner}.{SIGNATURES[name]}" for name in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise TypeError(f"{type(callback).__name__} requires {listed}, which {verb} not defined")
    return cast(P, module)


def members(protocol: type) -> list[str]:
    """Names of the attributes and methods of a protocol, those of its bases first."""
    names: dict[str, None] = {}
    for base in reversed(protocol.__mro__[:-1]):
        own = [*inspect.get_annotations(base), *base.__dict__]
        names |= {name: None for name in own if not name.startswith("_")}
    return list(names)
