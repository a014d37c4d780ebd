"""Where log pi_ref comes from: a frozen copy, the policy with its adapter off, a copied adapter, or a cache on disk."""

from pl_prefopt.references.networks import (
    AdapterCopy,
    AdapterOff,
    AutoReference,
    CachedReference,
    FrozenCopy,
    FrozenModel,
    NoReference,
    Reference,
    ReferenceNetwork,
)

__all__ = [
    "AdapterCopy",
    "AdapterOff",
    "AutoReference",
    "CachedReference",
    "FrozenCopy",
    "FrozenModel",
    "NoReference",
    "Reference",
    "ReferenceNetwork",
]
