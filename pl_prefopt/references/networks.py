"""Where log pi_ref comes from: a frozen copy, the policy with its adapter off, a copied adapter, or a cache on disk.

The small `Configurable` classes are what YAML names; `build` turns them into a `ReferenceNetwork`, the run-time part.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from pl_prefopt.adapters import (
    REFERENCE,
    adapter_active,
    adapter_parameters,
    adapters_change_nothing,
    adapters_disabled,
    add_adapter_copy,
    has_adapters,
    parameters_of_adapters,
    trained_beside_adapters,
)
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.configurable import Configurable
from pl_prefopt.utilities.modes import eval_mode


class ReferenceNetwork(nn.Module, ABC):
    """Run-time side of a reference. `use(policy)` yields the network to call as pi_ref: no gradient, eval mode."""

    kind: str
    """What configurations call it."""
    cached: bool = False
    """Whether its values are kept on disk, so that it must stay where it is."""

    starts_at_policy: bool = True
    """Whether it equals the policy at the first step, which is then checked on the first batch."""

    @contextmanager
    def use(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the reference network; it is `policy` itself, switched, where no second network is held."""
        with torch.no_grad(), self._network(policy) as network, eval_mode(network):
            yield network

    @abstractmethod
    def _network(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Context that gives the network to call as pi_ref."""

    def weights(self, policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of every weight that the reference's numbers depend on."""
        with self.use(policy) as network:
            yield from network.named_parameters()

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(reference, policy) parameters that a moving reference synchronizes.

        Raises:
            ValueError: this kind of reference cannot move.
        """
        raise ValueError(
            f"the reference must be able to move, got {self.kind}; use reference: FrozenCopy for full fine-tuning or "
            "reference: AdapterCopy with adapters"
        )


class _FrozenCopyNetwork(ReferenceNetwork):
    kind = "FrozenCopy"

    def __init__(self, network: nn.Module, starts_at_policy: bool = True) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.starts_at_policy = starts_at_policy

    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self.network

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.network.parameters(), policy.parameters(), strict=True)


class _AdapterOffNetwork(ReferenceNetwork):
    kind = "AdapterOff"

    def __init__(self, starts_at_policy: bool) -> None:
        super().__init__()
        self.starts_at_policy = starts_at_policy

    def weights(self, policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        adapters = parameters_of_adapters(policy)
        return ((name, value) for name, value in policy.named_parameters() if id(value) not in adapters)

    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapters_disabled(policy):
            yield policy


class _AdapterCopyNetwork(ReferenceNetwork):
    kind = "AdapterCopy"

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def weights(self, policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        adapters = parameters_of_adapters(policy)
        yield from ((name, value) for name, value in policy.named_parameters() if id(value) not in adapters)
        yield from adapter_parameters(policy, REFERENCE).items()

    @contextmanager
    def _network(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapter_active(policy, REFERENCE):
            yield policy

    def pairs(self, policy: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        values = adapter_parameters(policy, self.source)
        return ((p, values[key]) for key, p in adapter_parameters(policy, REFERENCE).items())


class _CachedNetwork(ReferenceNetwork):
    """Computes the values of a cache, and those of rows that no cache holds."""

    kind = "CachedReference"
    cached = True

    def __init__(self, inner: ReferenceNetwork) -> None:
        super().__init__()
        self.inner = inner
        self.starts_at_policy = inner.starts_at_policy

    def weights(self, policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        return self.inner.weights(policy)

    def _network(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        return self.inner._network(policy)


class Reference(Configurable):
    """Which reference the objective subtracts. Chosen in YAML as `reference: FrozenCopy` and so on."""

    @abstractmethod
    def build(self, policy: nn.Module) -> ReferenceNetwork | None:
        """Make the run-time reference of a policy that was just built.

        Raises:
            ValueError: the policy has no adapters where this kind needs them.
        """


class AutoReference(Reference):
    """The policy as it is at the start, at the least cost.

    The adapter switched off, where adapters are new and nothing else trains; a frozen copy of the adapter, where it was
    trained before or starts away from zero (PiSSA, random); else a frozen copy of the network.
    """

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Look at the policy."""
        if not has_adapters(policy) or trained_beside_adapters(policy):
            return _FrozenCopyNetwork(policy)
        if adapters_change_nothing(policy):
            return _AdapterOffNetwork(starts_at_policy=True)
        return AdapterCopy().build(policy)


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


@dataclass
class FrozenModel(Reference):
    """Another network than the policy's start, e.g. a stronger model or an earlier stage, frozen.

    Args:
        model: its builder; vocabulary and kind of input must be the policy's.
    """

    model: PolicyBuilder

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Build the network and compare its vocabulary with the policy's.

        Raises:
            ValueError: the two do not score the same tokens.
        """
        network = self.model()
        expected, size = _vocabulary(policy), _vocabulary(network)
        if size != expected:
            raise ValueError(
                f"the reference {type(network).__name__} must score the {expected} tokens of the policy, got {size}"
            )
        return _FrozenCopyNetwork(network, starts_at_policy=False)


class AdapterOff(Reference):
    """The policy's own network with its adapters switched off: no second network in memory.

    Where the adapter was trained before, this is the base below it, not the policy at the start.
    """

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Check that there are adapters to switch off, and that nothing else trains."""
        _require_adapters(policy, "AdapterOff")
        return _AdapterOffNetwork(starts_at_policy=adapters_change_nothing(policy))


@dataclass
class AdapterCopy(Reference):
    """A second, frozen adapter on the same base: starts equal to the policy's adapter and can move with it.

    Args:
        source: name of the policy's adapter.
    """

    source: str = "default"

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Add the frozen adapter."""
        _require_adapters(policy, "AdapterCopy")
        add_adapter_copy(policy, self.source, REFERENCE)
        return _AdapterCopyNetwork(self.source)


@dataclass
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

    path: str
    inner: Reference = field(default_factory=AutoReference)

    def __post_init__(self) -> None:
        if isinstance(self.inner, (CachedReference, NoReference, AdapterCopy)):
            raise ValueError(f"inner must be AutoReference, FrozenCopy, FrozenModel or AdapterOff, got {self.inner!r}")

    def build(self, policy: nn.Module) -> ReferenceNetwork:
        """Build what will compute the values."""
        inner = self.inner.build(policy)
        assert inner is not None
        return _CachedNetwork(inner)


def _vocabulary(network: nn.Module) -> int | None:
    """Rows of the output layer, None for networks without one."""
    layer = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return None if layer is None else layer.weight.shape[0]


def _require_adapters(policy: nn.Module, kind: str) -> None:
    if not has_adapters(policy):
        raise ValueError(
            f"reference {kind} needs a policy with peft adapters; set the policy's `lora` or use FrozenCopy"
        )
    beside = trained_beside_adapters(policy)
    if beside:
        names = f"{', '.join(beside[:2])}{' and others' if len(beside) > 2 else ''}"
        raise ValueError(
            f"reference {kind} needs a policy whose adapters alone are trained, got {names} trained too, which would "
            "move the reference along. Leave out lora.bias, or use reference: FrozenCopy."
        )
