"""Training on several sources of data in proportions that may change during training.

Legend: K sources, S rows of one draw (an optimizer step, or a block of a plain loader).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from pl_prefopt.utilities.checks import integer


class ScheduleState(TypedDict):
    """All weights so far, each with the draw that it began with, as lists [draw, weights]."""

    history: list[list]


class SourceSchedule:
    """Which rows each draw takes: a function of sources, seed and the weights so far, so every draw can be repeated.

    Draw t takes S rows, floor or ceil of S * w_k of them from source k (systematic sampling). The rows of a source come
    in random order, and all of them before any is repeated.

    Args:
        sources: name -> row ids, none empty.
        size: S.
        seed: key of all draws.
        weights: name -> weight >= 0, normalised here; None: proportional to the number of rows.

    Raises:
        ValueError: fewer than two sources, one without rows, S < 1, weights that are not one number >= 0 per source.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[int] | np.ndarray],
        size: int,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.names = tuple(sources)
        self.rows_of = [np.asarray(sources[n]) for n in self.names]
        empty = [n for n, rows in zip(self.names, self.rows_of, strict=True) if not len(rows)]
        if len(self.names) < 2 or empty:
            raise ValueError(f"sources must be at least two, each with rows, got {list(self.names)}, empty: {empty}")
        integer("size", size)
        self.size, self.seed = size, seed
        self.drawn = 0
        self.history: list[tuple[int, list[float]]] = []
        self._cursor = np.zeros(len(self.names), dtype=np.int64)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        counts = {n: float(len(r)) for n, r in zip(self.names, self.rows_of, strict=True)}
        self.set_weights(counts if weights is None else weights)

    @property
    def weights(self) -> np.ndarray:
        """(K,) weights of the draws to come, sum 1."""
        return np.asarray(self.history[-1][1])

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Use these weights from the next draw on."""
        values = np.asarray([weights.get(n, np.nan) for n in self.names], dtype=float)
        if set(weights) != set(self.names) or not np.isfinite(values).all() or values.min() < 0 or not values.sum():
            raise ValueError(
                f"weights must give every source of {list(self.names)} a finite value >= 0, not all 0, got "
                f"{dict(weights)}"
            )
        self.history.append((self.drawn, (values / values.sum()).tolist()))

    def rows(self, draw: int) -> np.ndarray:
        """(S,) row ids of a draw, in random order."""
        if draw != self.drawn:
            self._go_to(draw)
        source_of = self._sources(draw)
        row_ids = np.empty(self.size, dtype=np.int64)
        for k, rows in enumerate(self.rows_of):
            slots = np.flatnonzero(source_of == k)
            for offset, slot in enumerate(slots):
                # the cursor counts the rows of the source over all draws; each full turn has a new random order
                turn, position = divmod(int(self._cursor[k]) + offset, len(rows))
                row_ids[slot] = rows[self._order(k, turn)[position]]
        self._cursor += np.bincount(source_of, minlength=len(self.names))
        self.drawn = draw + 1
        return row_ids

    def state_dict(self) -> ScheduleState:
        """Return all weights so far."""
        return {"history": [[start, list(weights)] for start, weights in self.history]}

    def load_state_dict(self, state: ScheduleState) -> None:
        """Repeat the draws that were made under these weights."""
        self.history = [(int(start), list(weights)) for start, weights in state["history"]]
        self.drawn, self._cursor = 0, np.zeros(len(self.names), dtype=np.int64)

    def _sources(self, draw: int) -> np.ndarray:
        """(S,) number of the source of each row of a draw."""
        weights = next(weights for start, weights in reversed(self.history) if start <= draw)
        rng = np.random.default_rng([self.seed, 1, draw])
        points = (np.arange(self.size) + rng.random()) / self.size
        # rounding may leave the last sum of weights below the last point
        source_of = np.searchsorted(np.cumsum(weights), points, side="right").clip(max=len(self.names) - 1)
        return rng.permutation(source_of)

    def _go_to(self, draw: int) -> None:
        """Set the cursors to what they are before a draw, by counting the rows of the draws before it."""
        if draw < self.drawn:
            self.drawn, self._cursor = 0, np.zeros(len(self.names), dtype=np.int64)
        for earlier in range(self.drawn, draw):
            self._cursor += np.bincount(self._sources(earlier), minlength=len(self.names))

    def _order(self, source: int, turn: int) -> np.ndarray:
        """Random order of the rows of a source in one turn; the last one is kept."""
        if self._orders.get(source, (-1,))[0] != turn:
            rng = np.random.default_rng([self.seed, 2, source, turn])
            self._orders[source] = (turn, rng.permutation(len(self.rows_of[source])))
        return self._orders[source][1]


class SourceSampler(DistributedSampler[int]):
    """Sampler for a plain `DataLoader` whose source weights may change; every rank takes its share of each block.

    Args:
        sources: name -> row ids of the dataset.
        block: rows that are drawn together over all ranks, a multiple of the number of ranks.
        seed: key of all draws.
        weights: name -> weight; None: proportional to the number of rows.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[int] | np.ndarray],
        block: int = 64,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.schedule = SourceSchedule(sources, block, seed, weights)
        self.epoch = 0
        self.blocks = max(1, sum(map(len, self.schedule.rows_of)) // block)

    def _share(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        ready = dist.is_available() and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        if self.schedule.size % ranks:
            raise ValueError(f"block must be a multiple of the {ranks} ranks, got {self.schedule.size}")
        return rank, ranks

    def __len__(self) -> int:
        return self.blocks * self.schedule.size // self._share()[1]

    def __iter__(self) -> Iterator[int]:
        rank, ranks = self._share()
        for i in range(self.blocks):
            yield from self.schedule.rows(self.epoch * self.blocks + i)[rank::ranks].tolist()
