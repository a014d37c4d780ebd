"""Where log pi_ref comes from: a frozen copy, the policy with its adapter off, a copied adapter, or a cache on disk.

The small `Configurable` classes are what YAML names; `build` turns them into a `ReferenceNetwork`, the run-time part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from pl_prefopt.adapters import (
    REFERENCE,
    adapter_active,
    adapter_parameters,
    adapters_disabled,
    add_adapter_copy,
    has_adapters,
)
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.configurable import Configurable
from pl_prefopt.utilities.modes import eval_mode


class ReferenceNetwork(nn.Module):
    """Run-time side of a reference. `use(policy)` yields the network to call as pi_ref: no gradient, eval mode."""

    cached: bool = False
    """Whether values are kept on disk for a fixed set of rows, so that rows made during training have none."""

    @contextmanager
    def use(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the reference network; it is `policy` itself, switched, where no second network is held."""
        with torch.no_grad(), self._network(policy) as network, eval_mode(network):
            yield network

    def _network(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        raise ValueError(f"{type(self).__name__} holds no network")

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(reference, policy) parameters that a moving reference synchronises.

        Raises:
            ValueError: this kind of reference cannot move.
        """
        raise ValueError(
            f"a reference of kind {type(self).__name__} cannot move; use reference: FrozenCopy for full fine-tuning "
            "or reference: AdapterCopy with adapters"
        )


class _FrozenCopyNetwork(ReferenceNetwork):
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(policy).requires_grad_(False).eval()

    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self.network

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.network.parameters(), policy.parameters(), strict=True)


class _AdapterOffNetwork(ReferenceNetwork):
    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapters_disabled(policy):
            yield policy


class _AdapterCopyNetwork(ReferenceNetwork):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapter_active(policy, REFERENCE):
            yield policy

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        values = adapter_parameters(policy, self.source)
        return ((p, values[key]) for key, p in adapter_parameters(policy, REFERENCE).items())


class Reference(Configurable):
    """Which reference the objective subtracts. Chosen in YAML as `reference: FrozenCopy` and so on."""

    def build(self, policy: nn.Module) -> ReferenceNetwork | None:
        """Make the run-time reference of a policy that was just built.

        Raises:
            ValueError: the policy has no adapters where this kind needs them.
        """
        return (_AdapterOffNetwork() if has_adapters(policy) else _FrozenCopyNetwork(policy)).requires_grad_(False)


class AutoReference(Reference):
    """The adapter switched off where the policy has adapters, else a frozen copy."""


class NoReference(Reference):
    """No reference: log-ratios are the policy's log-probabilities (`reference_free`)."""

    def build(self, policy: nn.Module) -> None:
        """Nothing to build."""
        return None


class FrozenCopy(Reference):
    """A frozen copy of the weights that the policy has in memory, not of a file they once came from."""

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Copy the policy."""
        return _FrozenCopyNetwork(policy)


class FrozenModel(Reference):
    """Another network than the policy's start, e.g. a stronger model or an earlier stage, frozen.

    Args:
        model: its builder; vocabulary and kind of input must be the policy's.
    """

    def __init__(self, model: PolicyBuilder) -> None:
        self.model = model

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Build the network and compare its vocabulary with the policy's.

        Raises:
            ValueError: the two do not score the same tokens.
        """
        network = self.model()
        own, other = _vocabulary(policy), _vocabulary(network)
        if own != other:
            raise ValueError(
                f"the reference {type(network).__name__} scores {other} tokens, the policy {type(policy).__name__} "
                f"{own}; accepted: a reference of the policy's vocabulary"
            )
        return _FrozenCopyNetwork(network)


class AdapterOff(Reference):
    """The policy's own network with its adapters switched off: no second network in memory."""

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Check that there are adapters to switch off."""
        _require_adapters(policy, "AdapterOff")
        return _AdapterOffNetwork()


class AdapterCopy(Reference):
    """A second, frozen adapter on the same base: starts equal to the policy's adapter and can move with it.

    Args:
        source: name of the policy's adapter.
    """

    def __init__(self, source: str = "default") -> None:
        self.source = source

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Add the frozen adapter."""
        _require_adapters(policy, "AdapterCopy")
        add_adapter_copy(policy, self.source, REFERENCE)
        return _AdapterCopyNetwork(self.source)


class CachedReference(Reference):
    """Reference log-probabilities computed once, kept on disk, and refused when they belong to anything else.

    The key is made of the reference's weights, the token ids and masks after truncation, and the dtype; learning rate,
    objective, folders and the number of processes do not matter. Only for references that stay where they are, and for
    objectives that need token log-probabilities (not the full distribution, as TDPO does).

    Args:
        path: folder of the cache.
        inner: what computes the values: `AutoReference`, `FrozenCopy` or `AdapterOff`; it also serves callbacks, whose
            batches are not rows of a cached split.
    """

    def __init__(self, path: str, inner: Reference | None = None) -> None:
        self.path = path
        self.inner = inner if inner is not None else AutoReference()
        if isinstance(self.inner, (CachedReference, NoReference, AdapterCopy)):
            raise ValueError(
                f"CachedReference.inner must be AutoReference, FrozenCopy or AdapterOff, got {self.inner!r}"
            )

    def build(self, policy: nn.Module) -> ReferenceNetwork | None:
        """Build what will compute the values."""
        network = self.inner.build(policy)
        if network is not None:
            network.cached = True
        return network


def _vocabulary(network: nn.Module) -> int | None:
    """Rows of the output layer, None for networks without one."""
    layer = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return None if layer is None else layer.weight.shape[0]


def _require_adapters(policy: nn.Module, kind: str) -> None:
    if not has_adapters(policy):
        raise ValueError(
            f"reference {kind} needs a policy with peft adapters; set the policy's `lora` or use FrozenCopy"
        )
