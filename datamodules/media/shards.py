"""Tensors under content keys in safetensors files that are only ever added, so work that was killed goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pl_prefopt.utilities.files import write_atomic

if TYPE_CHECKING:
    from safetensors import safe_open


class ShardStore:
    """Rows of tensors by key. Shards are written atomically; several processes may add to one folder.

    Entries belong to content, not to numbers of rows (as `utilities.files.Parts` has them): data may grow or be
    reordered, and what is stored stays valid.

    Args:
        folder: where the shards are; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locations: dict[str, tuple[str, int]] = {}
        self._known: set[str] = set()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._locations

    def refresh(self) -> None:
        """Look for shards that were added since.

        Raises:
            ValueError: a shard cannot be read.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._known:
                keys = json.loads(_opened(str(path)).metadata()["keys"])
                self._locations |= {key: (str(path), row) for row, key in enumerate(keys)}
                self._known.add(path.name)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not stored, without repetition, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._locations]

    def write(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Store row i of every tensor under `keys[i]`."""
        from safetensors.torch import save_file

        name = f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:24]}.safetensors"
        contents = {key: value.contiguous() for key, value in tensors.items()}
        metadata = {"keys": json.dumps(list(keys))}
        write_atomic(self.folder / name, lambda path: save_file(contents, path, metadata))

    def read(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of one key, without the row dimension."""
        path, row = self._locations[key]
        return {name: values[row] for name, values in _tensors(path).items()}


@lru_cache(maxsize=128)
def _tensors(path: str) -> dict[str, Tensor]:
    """All tensors of a file, mapped into memory, not read: rows are read where they are used."""
    file = _opened(path)
    return {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118  no mapping


@lru_cache(maxsize=128)
def _opened(path: str) -> safe_open:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt")
    except Exception as error:
        raise ValueError(
            f"cached file {path} must be safetensors, got {error}. Delete it; it is then rebuilt."
        ) from None
