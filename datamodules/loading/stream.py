"""Training rows that are encoded while the run reads them: nothing is stored, the data may be larger than the disk.

A *block* is a run of consecutive rows of the source. Blocks come in random order where the source can be read in any
order (files, Arrow) and in its own order where it cannot (a dataset streamed from the hub); rows are shuffled inside a
block. The blocks of an epoch, one behind the other, make one sequence of positions 0, 1, 2, ... Rank r of W encodes the
rows at positions r, r + W, r + 2W, ... and nothing else, so two ranks see in every step the rows that one rank with
twice the batch size sees.

A position is arithmetic: batch n of a rank begins at position n * batch_size * W, whatever the rows are. That is why
all ranks stop together without talking to each other, and why a run can be resumed by number of batches. A row that
cannot be used must not move the rows behind it, since other ranks would not know; a row of its block takes its place.
(`datasets.distributed.split_dataset_by_node` splits a stream of files in the same way, row i to rank i modulo W, but
rows that are dropped behind it give ranks different numbers of batches, and its state holds no shuffled block order.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pl_prefopt.datamodules.files.readers import Row, Source
from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.datamodules.loading.loader import EpochPath, check_content, content_key, start_worker

EncodedRow = dict[str, Any]


class EncodeRows(Protocol):
    """Turns raw rows into the rows that `collate` takes; must be picklable for worker processes."""

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> tuple[dict[int, EncodedRow], Mapping[str, int]]:
        """Return row number -> row, without those that cannot be used, and counts of what was dropped or changed."""
        ...


class Block(TypedDict):
    """This rank's rows of one block."""

    rows: list[tuple[int, EncodedRow]]
    """(position in the epoch, row), in order."""
    end: int
    """Position behind the last row of the block, of whichever rank."""
    counts: Counter[str]


class Blocks(IterableDataset[Block]):
    """This rank's rows of the blocks of an epoch, from block `start` on; worker w of V encodes every V-th block.

    Args:
        source: raw rows.
        encode: turns raw rows into rows.
        size: rows of a block, which are shuffled together.
        seed: key of the order.
        limit: use only the first rows of the source.
        share: this rank and the number of ranks.

    Raises:
        ValueError: (while reading) no row of the source can be used.
    """

    def __init__(
        self,
        source: Source,
        encode: EncodeRows,
        size: int,
        seed: int,
        limit: int | None = None,
        share: Share | None = None,
    ) -> None:
        self.source, self.encode, self.size, self.seed, self.limit = source, encode, size, seed, limit
        self.share = share or Share()
        self.epoch, self.start = 0, 0

    @property
    def rows(self) -> int | None:
        """Rows of the source, after the limit; None where unknown."""
        try:
            return min(len(self.source), self.limit or len(self.source))
        except TypeError:
            return self.limit

    def locate(self, position: int) -> int:
        """Return the number of the block that holds a position of the epoch."""
        if not self.source.seekable:
            return position // self.size
        return int(np.searchsorted(self._ends(), position, side="right"))

    def __iter__(self) -> Iterator[Block]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for number, first, position, raws in self._raw_blocks():
            if (number - self.start) % workers == worker:
                yield self._encoded(number, first, position, raws)

    def _order(self) -> np.ndarray:
        """Blocks of the source in the order of the epoch."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(-(-(self.rows or 0) // self.size))

    def _ends(self) -> np.ndarray:
        """Position behind each block of the epoch. Only the last block of the source may be smaller than `size`."""
        rows = self.rows or 0
        return np.cumsum([min(self.size, rows - int(block) * self.size) for block in self._order()])

    def _raw_blocks(self) -> Iterator[tuple[int, int, int, Iterator[Row]]]:
        """Yield (number, first row of the source, first position, rows), from block `start` on."""
        if self.source.seekable:
            order, ends = self._order(), self._ends()
            for number in range(self.start, len(order)):
                first, position = int(order[number]) * self.size, int(ends[number - 1]) if number else 0
                yield number, first, position, islice(self.source.iterate(first), int(ends[number]) - position)
            return
        number, stream = self.start, self.source.iterate(self.start * self.size)
        while True:
            first = number * self.size
            raws = list(islice(stream, self.size if self.limit is None else max(0, min(self.size, self.limit - first))))
            if not raws:
                return
            yield number, first, first, iter(raws)
            number += 1

    def _encoded(self, number: int, first: int, position: int, raws: Iterator[Row]) -> Block:
        """Shuffle a block, then encode the rows whose positions belong to this rank."""
        block = list(raws)
        order = np.random.default_rng([self.seed, self.epoch, number]).permutation(len(block))
        start = (self.share.rank - position) % self.share.world_size
        offsets = range(start, len(block), self.share.world_size)
        encoded, changes = self.encode([(first + int(order[i]), block[order[i]]) for i in offsets])
        counts = Counter(changes) + Counter(read=len(offsets), repeated=len(offsets) - len(encoded))
        substitutes = list(encoded.values())
        if offsets and not substitutes:
            substitutes = [self._any_row()]
        rows: list[tuple[int, EncodedRow]] = []
        repeated = 0
        for i in offsets:
            row = encoded.get(first + int(order[i]))
            if row is None:  # cannot be used: the positions behind it must not move
                row = substitutes[repeated % len(substitutes)]
                repeated += 1
            rows.append((position + i, row))
        return {"rows": rows, "end": position + len(block), "counts": counts}

    def _any_row(self) -> EncodedRow:
        """The first row of the source that can be used: for a rank none of whose rows of a block can."""
        for number, raw in enumerate(islice(self.source.iterate(0), self.rows)):
            encoded, _ = self.encode([(number, raw)])
            if encoded:
                return encoded[number]
        raise ValueError(f"{self.source.name} must hold a row that can be used, got none")


class StreamLoader:
    """Batches of a stream, without a length, with an exact position.

    Args:
        blocks: this rank's rows.
        batch_size: rows per rank and micro-batch.
        collate: turns a list of rows into a batch.
        accumulate: micro-batches per optimizer step; an epoch ends with a whole step.
        num_workers: processes that encode.
        delivered: how many batches of this epoch were really used, where the reader fetches ahead (Lightning does for
            loaders without a length); None: all that were yielded.
    """

    def __init__(
        self,
        blocks: Blocks,
        batch_size: int,
        collate: Callable[[list[EncodedRow]], Any],
        *,
        accumulate: int = 1,
        num_workers: int = 0,
        delivered: Callable[[], int] | None = None,
    ) -> None:
        self.blocks, self.batch_size, self.collate = blocks, batch_size, collate
        self.accumulate, self.num_workers, self.delivered = accumulate, num_workers, delivered
        self.counts: Counter[str] = Counter()
        """What happened to this rank's rows of the epoch: read, repeated, dropped/<reason>, changed/<what>."""
        self._yielded = 0
        self._resume_at = 0

    @property
    def batch_sampler(self) -> EpochPath:
        """Give Lightning the path on which it announces epochs."""
        return EpochPath(self)

    @property
    def order(self) -> str:
        """What must be equal for a number of batches to mean the same rows."""
        blocks = self.blocks
        order = {"rows": blocks.rows, "seed": blocks.seed, "shuffle_buffer": blocks.size}
        cut = {"batch": self.batch_size, "devices": blocks.share.world_size, "accumulate": self.accumulate}
        return ", ".join(["order 2", *(f"{name} {value}" for name, value in (order | cut).items())])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; another epoch than that of a loaded state starts at its beginning."""
        if epoch != self.blocks.epoch:
            self.blocks.epoch = epoch
            self._yielded = self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's remaining batches."""
        self._yielded, self._resume_at = self._resume_at, 0
        self.counts = Counter()
        world_size = self.blocks.share.world_size
        step = self.batch_size * world_size * self.accumulate
        begin = self._yielded * self.batch_size * world_size
        self.blocks.start = self.blocks.locate(begin)
        generator = torch.Generator().manual_seed(self.blocks.epoch)
        options: dict[str, Any] = {"num_workers": self.num_workers, "generator": generator}
        loader = DataLoader(self.blocks, batch_size=None, collate_fn=_unchanged, worker_init_fn=start_worker, **options)
        buffer: list[EncodedRow] = []
        for block in loader:
            self.counts.update(block["counts"])
            buffer += [row for position, row in block["rows"] if position >= begin]
            # A step is complete when the rows of all ranks were read, which the end of the block tells; to count only
            # its own rows, a rank could begin a step that the others cannot.
            while (self._yielded // self.accumulate + 1) * step <= block["end"]:
                batch, buffer = buffer[: self.batch_size], buffer[self.batch_size :]
                self._yielded += 1
                yield self.collate(batch)
        rank_zero_info("train, epoch %d, rank 0: %s", self.blocks.epoch, dict(sorted(self.counts.items())))

    @cached_property
    def content(self) -> str | None:
        """Key of the content of the source, computed once."""
        return content_key(self.blocks.source)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches that were used; the same on all ranks."""
        batches = self.delivered() if self.delivered else self._yielded
        return {"epoch": self.blocks.epoch, "order": self.order, "content": self.content, "batches": batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position.

        Raises:
            ValueError: rows, seed, batch size, devices, accumulation or block size are not those of the checkpoint, or
                an earlier version wrote it in the middle of an epoch.
        """
        if state["batches"] and state["order"] != self.order:
            raise ValueError(
                f"the order of the streamed rows must be that of the checkpoint ({state['order']}), but this run has "
                f"{self.order}. Restore these settings, or resume from a checkpoint without a data position."
            )
        if state["batches"]:
            check_content(state, self.content)
        self.blocks.epoch = state["epoch"]
        self._yielded = self._resume_at = state["batches"]


def _unchanged(block: Any) -> Any:
    """Stands for the default collation, which would turn numbers into tensors."""
    return block
