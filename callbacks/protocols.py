"""What a callback may ask of a LightningModule: at most three members, checked by name in `setup`.

`policy`: the network that trains. `pair_logratios(batch)`: log pi/pi_ref of chosen and rejected, (B,) each.
`pair_hidden_states(batch)`: features that feed the policy's output layer, (B, T, D), with masks (B, T).
"""

from __future__ import annotations

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


def require(module: Any, callback: object, *members: str) -> None:
    """Check that `module` has the members that `callback` uses.

    Raises:
        TypeError: naming what is missing and what it should be.
    """
    wanted = {
        "policy": "the network that trains (nn.Module)",
        "reference": "the reference (a ReferenceNetwork, or any network shaped like the policy)",
        "pair_logratios": "pair_logratios(batch) -> (chosen (B,), rejected (B,))",
        "preview": "preview(conditions, seed) -> one text per condition, or pictures (N, 3, H, W)",
        "pair_hidden_states": "pair_hidden_states(batch) -> (chosen (B, T, D), mask, rejected (B, S, D), mask)",
    }
    missing = [m for m in members if getattr(module, m, None) is None]
    if missing:
        told = "; ".join(f"{m}: {wanted[m]}" for m in missing)
        raise TypeError(f"{type(callback).__name__} needs of {type(module).__name__} what it does not have: {told}")
