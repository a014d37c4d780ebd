"""Preference optimization for any modality, on stock PyTorch Lightning.

Sub-packages are imported when they are used: `import pl_prefopt` costs nothing, `pl_prefopt.losses` needs only torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pl_prefopt import (
        adapters,
        callbacks,
        datamodules,
        judges,
        logprobs,
        losses,
        metrics,
        modules,
        objectives,
        policies,
        references,
        scores,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "adapters",
    "callbacks",
    "datamodules",
    "judges",
    "logprobs",
    "losses",
    "metrics",
    "modules",
    "objectives",
    "policies",
    "references",
    "scores",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
