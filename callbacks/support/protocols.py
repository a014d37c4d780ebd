"""What a callback may ask of a LightningModule: at most three members, checked by name in `setup`.

`policy`: the network that trains. `pair_logratios(batch)`: log pi/pi_ref of chosen and rejected, (B,) each.
`pair_hidden_states(batch)`: features that feed the policy's output layer, (B, T, D), with masks (B, T).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class HasPolicy(Protocol):
    """A module with a trainable network."""

    policy: nn.Module


class HasLogratios(HasPolicy, Protocol):
    """A module that scores pairs."""

    def pair_logratios(self, batch: Any) -> tuple[Tensor, Tensor]:
        """(chosen (B,), rejected (B,)) log-ratios, with gradient to the policy."""
        ...


class HasHiddenStates(HasPolicy, Protocol):
    """A module that shows the features of both samples."""

    def pair_hidden_states(self, batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(chosen (B, T, D), mask (B, T), rejected (B, S, D), mask (B, S))."""
        ...


class HasSamples(HasPolicy, Protocol):
    """A module that samples from its policy."""

    def sample(self, conditions: Sequence[str], count: int, seed: int, **options: Any) -> Sequence[Sequence[Any]]:
        """`count` samples per condition: texts, or tensors of one sample each; the same for the same arguments."""
        ...


class HasRounds(Protocol):
    """A datamodule whose training rows may be replaced by samples."""

    def conditions(self, split: str) -> list[str]:
        """Return the distinct prompts or captions of the given files of a split."""
        ...

    def write_samples(self, root: Path, name: str, samples: Sequence[Any]) -> list[str]:
        """Keep samples below `root` under names that begin with `name`; return what rows call them."""
        ...

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...}; return the path of the file."""
        ...

    def provide_train(self, files: Callable[[], str | list[str] | None] | None) -> None:
        """Ask `files` for the training files whenever a training loader is made; None: keep those there are."""
        ...


def require(module: Any, callback: object, *members: str) -> None:
    """Check that `module` has the members that `callback` uses.

    Raises:
        TypeError: naming what is missing and what it should be.
    """
    wanted = {
        "policy": "the network that trains (nn.Module)",
        "reference": "the reference (a ReferenceNetwork, or any network shaped like the policy)",
        "pair_logratios": "pair_logratios(batch) -> (chosen (B,), rejected (B,))",
        "sample": "sample(conditions, count, seed, **options) -> count samples per condition",
        "conditions": "conditions(split) -> the distinct prompts or captions of a split",
        "truths": "truths(conditions) -> the ground truth of each, in the form of a sample",
        "write_samples": "write_samples(root, name, samples) -> what rows call them, one text each",
        "write_pairs": "write_pairs(root, name, rows) -> the path of the file that holds them",
        "provide_train": "provide_train(files), which is asked for the training files at every training loader",
        "preview": "preview(conditions, seed) -> one text per condition, or pictures (N, 3, H, W)",
        "pair_hidden_states": "pair_hidden_states(batch) -> (chosen (B, T, D), mask, rejected (B, S, D), mask)",
    }
    missing = [m for m in members if getattr(module, m, None) is None]
    if missing:
        told = "; ".join(f"{m}: {wanted[m]}" for m in missing)
        raise TypeError(f"{type(callback).__name__} needs of {type(module).__name__} what it does not have: {told}")
