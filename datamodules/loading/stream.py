"""Training rows that are tokenised on the way: nothing is stored, the data may be larger than the disk.

A block is a run of consecutive rows of the source. Blocks come in random order where the source can be sought (files,
Arrow) and in its own order where it cannot (a dataset streamed from the hub); rows are shuffled inside a block. Every
rank reads and counts all blocks and keeps its share of each batch. That costs each rank the tokenisation of the whole
stream, but all ranks agree on which rows were dropped, see the rows that one process would see, and stop together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pl_prefopt.datamodules.files.readers import Source
from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.datamodules.loading.loader import EpochPath, check_content, content_key, start_worker
from pl_prefopt.datamodules.text.build import RowPipeline, Settings

Row = dict[str, Any]
Block = tuple[int, list[Row], dict[str, int]]


class Blocks(IterableDataset[Block]):
    """Tokenised blocks from number `start` of an epoch on; worker w of W makes every W-th, in order."""

    def __init__(self, source: Source, tokenizer: Any, settings: Settings, size: int, seed: int) -> None:
        self.source, self.tokenizer, self.settings, self.size, self.seed = source, tokenizer, settings, size, seed
        self.epoch, self.start = 0, 0

    @property
    def rows(self) -> int | None:
        """Rows of the source, after the limit; None where unknown."""
        try:
            return min(len(self.source), self.settings.limit or len(self.source))
        except TypeError:
            return self.settings.limit

    def __iter__(self) -> Iterator[Block]:
        info = get_worker_info()
        turn, workers = (info.id, info.num_workers) if info else (0, 1)
        for number, first, raws in self._raw(lambda n: (n - self.start) % workers == turn):
            yield (number, *self._tokenised(number, first, raws))

    def _raw(self, mine: Callable[[int], bool]) -> Iterator[tuple[int, int, list[Row]]]:
        if not self.source.seekable:
            yield from self._in_order(mine)
            return
        rows = self.rows or 0
        count = -(-rows // self.size)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count)
        for number in filter(mine, range(self.start, count)):
            first = int(order[number]) * self.size
            yield number, first, list(islice(self.source.iterate(first), min(self.size, rows - first)))

    def _in_order(self, mine: Callable[[int], bool]) -> Iterator[tuple[int, int, list[Row]]]:
        number, limit = self.start, self.rows
        stream = self.source.iterate(number * self.size)
        while limit is None or number * self.size < limit:
            take = self.size if limit is None else min(self.size, limit - number * self.size)
            raws = list(islice(stream, take))
            if not raws:
                return
            if mine(number):
                yield number, number * self.size, raws
            number += 1

    def _tokenised(self, number: int, first: int, raws: list[Row]) -> tuple[list[Row], dict[str, int]]:
        pipeline = RowPipeline(self.source, self.tokenizer, self.settings)
        rows = [
            {"index": at, "prompt_ids": ids.prompt, "completion_ids": ids.completions, **example.numbers}
            for at, ids, example in pipeline.chunk(first, raws)
        ]
        order = np.random.default_rng([self.seed, self.epoch, number]).permutation(len(rows))
        return [rows[i] for i in order], {"read": len(raws), **pipeline.counts}


@dataclass(frozen=True)
class Place:
    """After `batches` batches: the step at hand begins at row `offset` of `block`, `skip` of its batches are out."""

    batches: int = 0
    block: int = 0
    offset: int = 0
    skip: int = 0


class StreamLoader:
    """Batches of a stream, without a length, with an exact position.

    Args:
        blocks: the tokenised blocks.
        batch_size: rows per rank and micro-batch.
        collate: turns a list of rows into a batch.
        share: this rank and the number of ranks.
        accumulate: micro-batches per optimiser step; an epoch ends with a whole step.
        num_workers: processes that tokenise.
        delivered: how many batches of this epoch were really used, where the reader fetches ahead (Lightning does for
            loaders without a length); None: all that were yielded.
    """

    def __init__(
        self,
        blocks: Blocks,
        batch_size: int,
        collate: Callable[[list[Row]], Any],
        share: Share,
        *,
        accumulate: int = 1,
        num_workers: int = 0,
        delivered: Callable[[], int] | None = None,
    ) -> None:
        self.blocks, self.batch_size, self.collate, self.share = blocks, batch_size, collate, share
        self.accumulate, self.num_workers, self.delivered = accumulate, num_workers, delivered
        self.counts: Counter[str] = Counter()
        self._places: deque[Place] = deque([Place()], maxlen=8)
        self._from = Place()

    @property
    def batch_sampler(self) -> EpochPath:
        """Give Lightning the path on which it announces epochs."""
        return EpochPath(self)

    @property
    def order(self) -> str:
        """What must be equal for a position to mean the same rows."""
        rows = self.blocks.rows
        parts = {"rows": rows, "seed": self.blocks.seed, "shuffle_buffer": self.blocks.size}
        cut = {"batch": self.batch_size, "devices": self.share.world_size, "accumulate": self.accumulate}
        return ", ".join(f"{k} {v}" for k, v in (parts | cut).items())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        if epoch != self.blocks.epoch:
            self.blocks.epoch = epoch
            self._restart(Place())

    def _restart(self, place: Place) -> None:
        self._from = place
        self._places = deque([place], maxlen=8)

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's share of the remaining batches."""
        place, self._from = self._from, Place()
        self._restart_counts(place)
        size = self.batch_size * self.share.world_size
        for (block, offset), rows in self._steps(place, size * self.accumulate):
            for part in range(place.skip, self.accumulate):
                done = part + 1 == self.accumulate
                block_, offset_ = self._next if done else (block, offset)
                place = Place(place.batches + 1, block_, offset_, 0 if done else part + 1)
                self._places.append(place)
                mine = rows[part * size : (part + 1) * size][self.share.rank :: self.share.world_size]
                yield self.collate(mine)
        rank_zero_info("train, epoch %d: %s", self.blocks.epoch, dict(sorted(self.counts.items())))

    def _restart_counts(self, place: Place) -> None:
        self._places = deque([place], maxlen=8)
        self.counts = Counter()
        self._next = (place.block, place.offset)

    def _steps(self, place: Place, size: int) -> Iterator[tuple[tuple[int, int], list[Row]]]:
        """Yield ((block, offset) of the first row, rows) of whole steps; `_next` is where the following one begins."""
        buffer: list[tuple[int, int, Row]] = []
        self.blocks.start = place.block
        generator = torch.Generator().manual_seed(self.blocks.epoch)
        options: dict[str, Any] = {"num_workers": self.num_workers, "generator": generator}
        loader = DataLoader(self.blocks, batch_size=None, worker_init_fn=start_worker, **options)
        for number, rows, counts in loader:
            self.counts.update(counts)
            skip = place.offset if number == place.block else 0
            buffer += [(number, i, row) for i, row in enumerate(rows) if i >= skip]
            while len(buffer) >= size:
                head, buffer = buffer[:size], buffer[size:]
                self._next = buffer[0][:2] if buffer else (number, len(rows))
                yield head[0][:2], [row for _, _, row in head]

    @cached_property
    def content(self) -> str | None:
        """Key of the content of the source, computed once."""
        return content_key(self.blocks.source)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the last batch that was used; the same on all ranks."""
        used = self.delivered() if self.delivered else self._places[-1].batches
        place = next((p for p in self._places if p.batches == used), self._places[-1])
        return {"epoch": self.blocks.epoch, "order": self.order, "content": self.content, **vars(place)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position.

        Raises:
            ValueError: rows, seed, batch size, devices, accumulation or block size are not those of the checkpoint.
        """
        if state["batches"] and state["order"] != self.order:
            raise ValueError(
                f"data position of the checkpoint: made with {state['order']}, but this run has {self.order}; "
                "accepted: the same. Or resume from a checkpoint without a data position."
            )
        if state["batches"]:
            check_content(state, self.content)
        self.blocks.epoch = state["epoch"]
        self._restart(Place(state["batches"], state["block"], state["offset"], state["skip"]))
