"""Connects `LogpCache` with a text module and its datamodule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

from pl_prefopt.references.cache import LogpCache, weights_digest

if TYPE_CHECKING:
    from pl_prefopt.modules.text import TextPreferenceModule


class TextReferenceCache:
    """The caches of all splits of one run, under one folder."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.splits: dict[str, LogpCache] = {}
        self._weights: str | None = None

    def fill(self, module: TextPreferenceModule, stages: Sequence[str]) -> None:
        """Compute what is missing for the splits of these stages, over all ranks, with a progress bar.

        Raises:
            ValueError: no datamodule with random access, or a cache of other weights, tokens or dtype.
        """
        trainer = module.trainer
        datamodule: Any = getattr(trainer, "datamodule", None)
        if not hasattr(datamodule, "datasets") or not hasattr(datamodule, "collate"):
            raise ValueError(
                "CachedReference needs a datamodule with `datasets` (random access) and `collate`, such as "
                "TextPreferenceDataModule without streaming; or use reference: AutoReference"
            )
        if "train" in stages and "train" not in datamodule.datasets:
            raise ValueError(
                "CachedReference needs random access to the training rows, but they are streamed: set streaming: "
                "false, or use reference: AutoReference"
            )
        for split, rows in datamodule.datasets.items():
            if split.split("/")[0] not in stages or split in self.splits:
                continue
            self.splits[split] = self._fill_split(module, datamodule, split, rows)

    def _fill_split(self, module: TextPreferenceModule, datamodule: Any, split: str, rows: Any) -> LogpCache:
        trainer = module.trainer
        if self._weights is None:
            assert module.reference is not None
            with module.reference.use(module.policy) as network:  # type: ignore[operator]
                self._weights = weights_digest(network)
        dtype = f"{next(module.policy.parameters()).dtype}/{trainer.precision}"
        key = {"weights": self._weights, "tokens": rows.digest(), "dtype": dtype}
        cache = LogpCache(self.path / split.replace("/", "__"), key, len(rows))
        todo = cache.missing(trainer.global_rank, trainer.world_size)

        def compute(part: Sequence[int]) -> tuple[Tensor, Tensor]:
            return _compute(module, datamodule, rows, part)

        cache.fill(todo, compute, lambda parts: _progress(parts, f"reference log-probs, {split}", trainer))
        trainer.strategy.barrier(f"reference cache {split}")
        cache.load()
        return cache

    def lookup(self, module: TextPreferenceModule, index: Tensor, length: Tensor) -> Tensor:
        """Values of the rows of the batch that is being processed now."""
        return self.splits[module.split].lookup(index, length)


def _compute(
    module: TextPreferenceModule, datamodule: Any, rows: Any, part: Sequence[int], batch_rows: int = 8
) -> tuple[Tensor, Tensor]:
    """Values of consecutive rows, computed in order of length so that little is padding."""
    order = sorted(part, key=lambda i: -int(rows.lengths[i]))
    values, lengths = {}, {}
    for start in range(0, len(order), batch_rows):
        chunk = order[start : start + batch_rows]
        batch = move_data_to_device(datamodule.collate([rows[i] for i in chunk]), module.device)
        with module.trainer.precision_plugin.forward_context():
            logps, length = module.reference_logps(batch)
        for i, row, n in zip(chunk, logps.float().cpu(), length.cpu(), strict=True):
            values[i], lengths[i] = row, n
    width, count = max(v.shape[1] for v in values.values()), max(v.shape[0] for v in values.values())
    out = torch.zeros(len(part), count, width)
    out_length = torch.zeros(len(part), count, dtype=torch.long)
    for at, i in enumerate(part):
        k, t = values[i].shape
        out[at, :k, :t], out_length[at, :k] = values[i], lengths[i]
    return out, out_length


def _progress(parts: list[Sequence[int]], title: str, trainer: Any) -> Iterator[Sequence[int]]:
    from tqdm.auto import tqdm

    hidden = not trainer.is_global_zero or not parts
    with tqdm(total=sum(map(len, parts)), desc=title, unit="row", disable=hidden, leave=False) as bar:
        for part in parts:
            yield part
            bar.update(len(part))
