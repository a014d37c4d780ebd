"""A loader that Lightning neither re-wraps nor replays: it knows its epoch and its position in it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class BatchPlan(Protocol):
    """What the loader needs from a sampler: batches of row ids that depend on the epoch only."""

    def __len__(self) -> int: ...
    def batches(self, epoch: int) -> Iterable[np.ndarray]: ...
    def fingerprint(self, epoch: int) -> str: ...


class TrainPlan(BatchPlan, Protocol):
    """A plan of training batches."""

    @property
    def left_out(self) -> int:
        """Rows that an epoch does not use because they do not fill an optimizer step."""
        ...


class PlannedLoader:
    """Load the batches of a plan, remember the position, and continue from it exactly.

    It is deliberately not a `torch.utils.data.DataLoader`: Lightning replaces the samplers of those under DDP and in
    `overfit_batches` and `predict`. It makes a plain one per epoch for the worker processes. Lightning finds
    `state_dict`, `load_state_dict` and `batch_sampler.sampler.set_epoch` here. Making and iterating it draws nothing
    from the global random generators.

    The state is the same on all ranks: epoch, batches handed out in it, and a key of the epoch's order. A dataset whose
    rows are random must derive that randomness from (seed, epoch, row id); its `set_epoch` is called, if it has one.
    Positions are counted here, and the state of worker processes is never saved: the order is a pure function of seed
    and epoch, so the remaining batches can be computed (torchdata's StatefulDataLoader would store every worker).

    Args:
        dataset: random-access rows of any modality.
        plan: which rows form which batch on this rank.
        collate: turns a list of rows into a batch.
        num_workers: worker processes; 0 loads in this process.
        pin_memory: copy batches to pinned memory first.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        plan: BatchPlan,
        collate: Callable[[list[Any]], Any],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.rows = dataset
        self.plan = plan
        self.collate = collate
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.epoch = 0
        self._position = 0
        self._resume_at = 0

    @property
    def batch_sampler(self) -> EpochPath:
        """Give Lightning the path on which it announces epochs: `loader.batch_sampler.sampler.set_epoch`."""
        return EpochPath(self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; another epoch than that of a loaded state starts at its beginning."""
        if epoch != self.epoch:
            self.epoch, self._position, self._resume_at = epoch, 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, resumed or not."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        """Yield the remaining batches; the start is looked up when the first one is asked for, not before."""
        start, self._resume_at = self._resume_at, 0
        self._position = start
        if callable(set_epoch := getattr(self.rows, "set_epoch", None)):
            set_epoch(self.epoch)
        batches = (b.tolist() for b in islice(self.plan.batches(self.epoch), start, None))
        loader = DataLoader(
            self.rows,
            batch_sampler=batches,  # pyright: ignore[reportArgumentType]  a generator: read once, as batches are needed
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(self.epoch),
        )
        for batch in loader:
            self._position += 1
            yield batch

    @cached_property
    def content(self) -> str | None:
        """Key of the content of the rows, computed once; None for rows that have no `digest`."""
        return content_key(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and keys of the order and of the rows."""
        order = self.plan.fingerprint(self.epoch)
        return {"epoch": self.epoch, "position": self._position, "order": order, "content": self.content}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position.

        Raises:
            ValueError: the position lies within an epoch whose order cannot be reproduced, or of other rows.
        """
        within = 0 < state["position"] < len(self)
        if within and (order := self.plan.fingerprint(state["epoch"])) != state["order"]:
            raise ValueError(
                f"the order of the training rows must be that of the checkpoint (epoch {state['epoch']}, batch "
                f"{state['position']}, order {state['order']}), got order {order}. Restore rows, seed, batch_size, "
                "accumulation, devices and length_buckets, or resume from a checkpoint of the end of an epoch."
            )
        if within:
            check_content(state, self.content)
        self.epoch = state["epoch"]
        self._position = self._resume_at = state["position"]


def start_worker(worker_id: int) -> None:
    """Let a worker process live exactly as long as its parent.

    A scheduler sends SIGTERM to all processes of a run, but the parent still needs batches to complete its optimizer
    step. When the parent is killed, PyTorch's workers notice only between batches, and never while the queue is full.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def content_key(source: object) -> str | None:
    """Key of the content of rows or of a source, which their `digest` returns; None where there is none."""
    digest: Callable[[], str] | None = getattr(source, "digest", None)
    return None if digest is None else digest()[:16]


def check_content(state: dict[str, Any], content: str | None) -> None:
    """Compare the rows of a position with those of this run; checkpoints of earlier versions do not name theirs.

    Raises:
        ValueError: they differ.
    """
    saved = state.get("content")
    if saved is not None and saved != content:
        raise ValueError(
            f"the content of the training rows must be that of the checkpoint, which was written in the middle of "
            f"epoch {state['epoch']} ({saved}), got {content}. Restore the data files, the tokenizer and the settings "
            "of the data, or resume from a checkpoint of the end of an epoch."
        )


class EpochPath:
    """Where Lightning looks for `set_epoch`, without the `sampler` attribute that it would replace."""

    def __init__(self, loader: Any) -> None:
        self.sampler = loader
