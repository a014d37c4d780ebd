"""Reference log-probabilities per token on disk: computed once, resumable, sharded by rank, refused when foreign."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROWS_PER_FILE = 512


def weights_digest(network: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the weights, adapters left out (they are off in a reference)."""
    digest = hashlib.sha256()
    for name, p in sorted(network.named_parameters()):
        if ".lora_" in name:
            continue
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LogpCache:
    """One split's values: files of 512 rows each, written atomically, plus a JSON key.

    Args:
        folder: cache folder of the split.
        key: what the values depend on: {"weights", "tokens", "dtype"}.
        rows: number of rows of the split.

    Raises:
        ValueError: the folder holds a cache of another key; the message names each part that differs.
    """

    def __init__(self, folder: Path, key: dict[str, Any], rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.key = {**key, "rows": rows, "rows_per_file": ROWS_PER_FILE}
        self._values: Tensor | None = None
        self._starts = self._lengths = torch.empty(0)
        meta = folder / "key.json"
        if meta.exists():
            found = json.loads(meta.read_text())
            wrong = [k for k in self.key if found.get(k) != self.key[k]]
            if wrong:
                told = "; ".join(f"{k}: cached {_short(found.get(k))}, now {_short(self.key[k])}" for k in wrong)
                raise ValueError(
                    f"the reference cache {folder} was made by other {' and '.join(wrong)} ({told}). "
                    "Delete the folder or give another path."
                )

    def _file(self, part: int) -> Path:
        return self.folder / f"{part:06d}.safetensors"

    def missing(self, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Row ranges that this rank has to compute; finished files are kept."""
        parts = range((self.rows + ROWS_PER_FILE - 1) // ROWS_PER_FILE)
        return [
            range(i * ROWS_PER_FILE, min((i + 1) * ROWS_PER_FILE, self.rows))
            for i in parts
            if i % world == rank and not self._file(i).exists()
        ]

    def fill(
        self,
        todo: list[Sequence[int]],
        compute: Callable[[Sequence[int]], tuple[Tensor, Tensor]],
        progress: Callable[[list[Sequence[int]]], Iterator[Sequence[int]]],
    ) -> None:
        """Compute and write the given ranges; `compute(rows)` gives (n, K, T) values and (n, K) lengths on the CPU."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_atomic(self.folder / "key.json", lambda p: p.write_text(json.dumps(self.key, indent=2)))
        for rows in progress(todo):
            values, lengths = compute(rows)
            mask = torch.arange(values.shape[-1]) < lengths[..., None]
            tensors = {"logps": values[mask].contiguous(), "lengths": lengths.contiguous()}
            _write_atomic(self._file(rows[0] // ROWS_PER_FILE), lambda p, t=tensors: save_file(t, p))

    def load(self) -> None:
        """Read all files; call after every rank has finished writing."""
        parts = [load_file(self._file(i)) for i in range((self.rows + ROWS_PER_FILE - 1) // ROWS_PER_FILE)]
        width = max(p["lengths"].shape[1] for p in parts)
        lengths = [nn.functional.pad(p["lengths"], (0, width - p["lengths"].shape[1])) for p in parts]
        self._values = torch.cat([p["logps"] for p in parts])
        self._lengths = torch.cat(lengths)
        flat = self._lengths.flatten()
        self._starts = (flat.cumsum(0) - flat).view_as(self._lengths)

    def lookup(self, index: Tensor, length: Tensor) -> Tensor:
        """(B, K, T) values of the rows `index`, zero beyond each length.

        Raises:
            ValueError: a row's token counts are not those that were cached.
        """
        if self._values is None:
            self.load()
        assert self._values is not None
        rows, count = index.cpu(), length.shape[1]
        cached = self._lengths[rows][:, :count]
        if not torch.equal(cached, length.cpu()):
            bad = rows[(cached != length.cpu()).any(1)].tolist()
            raise ValueError(f"rows {bad} of {self.folder.name} have other token counts than in the reference cache")
        at = torch.arange(int(cached.max()))
        where = (self._starts[rows][:, :count, None] + at).clamp(max=len(self._values) - 1)
        return (self._values[where] * (at < cached[..., None])).to(length.device)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) > 16 else text


def _write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    write(part)
    os.replace(part, path)
