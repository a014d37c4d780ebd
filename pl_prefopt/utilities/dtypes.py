"""Names of dtypes in configurations."""

from __future__ import annotations

import torch

from pl_prefopt.utilities.checks import choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str, argument: str = "dtype") -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: a name that is not a key of `DTYPES`.
    """
    choice(argument, name, tuple(DTYPES))
    return DTYPES[name]
