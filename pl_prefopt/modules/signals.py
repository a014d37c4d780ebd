"""Signals that end a run: acted upon between two optimizer steps, on all ranks at once."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors import signal_connector
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

KILLED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, by the convention of shells and schedulers."""


class DeferredSignals:
    """Holds SIGTERM, and SLURM's requeue signal, until the next optimizer step is complete.

    Lightning handles signals where they arrive, which may be in the middle of an optimizer step, and on several ranks
    at different batches, so that one waits for the other. Its handlers are kept (with SLURM they save and requeue, see
    `SLURMEnvironment`), but run here, when all ranks have finished the same step. After SIGTERM the run is saved as
    the last checkpoint and ends with status 143.
    """

    def __init__(self) -> None:
        self._received = 0
        self._frame: FrameType | None = None
        self._handlers: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type[DeferredSignals], tuple[()]]:
        """A copy in another process begins with nothing: handlers belong to the process."""
        return DeferredSignals, ()

    def install(self, trainer: pl.Trainer) -> None:
        """Take the place of Lightning's handlers; the Trainer restores those of before at its end."""
        self._received = int(signal.SIGTERM) if trainer.received_sigterm else 0
        self._handlers = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if type(handler).__module__ == signal_connector.__name__:
                self._handlers[int(number)] = handler
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received != signal.SIGTERM:  # which is final, unlike a request to be queued again
            self._received, self._frame = number, frame

    def act(self, trainer: pl.Trainer) -> None:
        """Between two optimizer steps: let Lightning handle what any rank has received; save and end after SIGTERM.

        Raises:
            SIGTERMException: (a SystemExit of status 143) after SIGTERM.
        """
        received = self._agreed(trainer)
        if not received:
            return
        self._received = 0
        if callable(handler := self._handlers.get(received)):
            handler(received, self._frame)
        if received == signal.SIGTERM:
            saved = save_last(trainer)
            result = f"saved as {saved}" if saved else "nothing was saved, because there is no ModelCheckpoint"
            rank_zero_info(f"ended by SIGTERM after optimizer step {trainer.global_step}; {result}")
            raise SIGTERMException(KILLED)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has received, SIGTERM before the other; 0 for none. A collective."""
        numbers = [0, *sorted(n for n in self._handlers if n != signal.SIGTERM), int(signal.SIGTERM)]
        rank = numbers.index(self._received)
        if trainer.world_size > 1:
            highest = torch.tensor(rank, device=trainer.strategy.root_device)
            rank = int(trainer.strategy.reduce(highest, None, "max"))  # type: ignore[arg-type]
        return numbers[rank]


def save_last(trainer: pl.Trainer) -> Path | None:
    """Save what `ckpt_path: last` finds, in the folder of the first `ModelCheckpoint`; None where there is none."""
    callback = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    if callback is None or callback.dirpath is None:
        return None
    name = callback.format_checkpoint_name({}, callback.CHECKPOINT_NAME_LAST)
    path = Path(callback.last_model_path or name)
    trainer.save_checkpoint(path)
    return path
