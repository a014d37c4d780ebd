"""Tensors under content keys in safetensors files that are only ever added, so work that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor


class ShardStore:
    """Rows of tensors by key. A shard is written whole or not at all; several processes may add to one folder.

    Args:
        folder: where the shards are; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[str, int]] = {}
        self._known: set[str] = set()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Look for shards that were added since.

        Raises:
            ValueError: a shard cannot be read.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._known:
                keys = json.loads(_opened(str(path)).metadata()["keys"])
                self._places |= {key: (str(path), row) for row, key in enumerate(keys)}
                self._known.add(path.name)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not stored, without repetition, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def write(self, keys: Sequence[str], tensors: dict[str, Tensor]) -> None:
        """Store row i of every tensor under `keys[i]`."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:24]}.safetensors"
        part = self.folder / f".{name}.{os.getpid()}"
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"keys": json.dumps(list(keys))})
        os.replace(part, self.folder / name)

    def read(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of one key, without the row dimension."""
        path, row = self._places[key]
        return {n: values[row] for n, values in _tensors(path).items()}


@lru_cache(maxsize=128)
def _tensors(path: str) -> dict[str, Tensor]:
    """All tensors of a file, mapped into memory, not read: rows are read where they are used."""
    file = _opened(path)
    return {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118  no mapping


@lru_cache(maxsize=128)
def _opened(path: str) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt")
    except Exception as error:
        raise ValueError(
            f"cached file {path}: cannot be read as safetensors ({error}); delete it, and it is made anew."
        ) from None
