"""Runs of more than one stage from a single config: what an earlier stage has to make is made first."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

ROOT = Path(__file__).resolve().parents[2]
STAMP = "made-from"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


class RunFirst(pl.Callback):
    """Run `pl-prefopt fit --config CONFIG` in a process of its own, unless its result is there already.

    It happens in `setup`, before the policy is built, so a policy may load what that run exports. The result is used
    again as long as the text of the config is the same.

    Args:
        config: path from the working directory, or from the folder that holds `pl_prefopt`.
        result: folder that the run writes, from the working directory.

    Raises:
        ValueError: no such config, or the run failed or did not write the folder.
    """

    def __init__(self, config: str, result: str) -> None:
        self.config = config
        self.result = result

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Run the stage on one process; the others wait."""
        if trainer.is_global_zero:
            self.run()
        trainer.strategy.barrier("RunFirst")

    def run(self, imports: Sequence[str] = ()) -> None:
        """Run the stage if its result is missing or was made from another text.

        Args:
            imports: modules that it needs, as its followers do: loaded before its process is forked, so once.
        """
        config = find_config(self.config)
        key = hashlib.sha256(config.read_bytes()).hexdigest()
        stamp = Path(self.result) / STAMP
        if stamp.is_file() and stamp.read_text() == key:
            return
        rank_zero_info("first stage: %s -> %s", self.config, self.result)
        for name in imports:
            import_module(name)
        context: Any = multiprocessing.get_context(start_method())
        process = context.Process(target=fit, args=(str(config),))
        process.start()
        process.join()
        if process.exitcode or not Path(self.result).is_dir():
            raise ValueError(
                f"the first stage {self.config} ended with status {process.exitcode} and "
                f"{'wrote' if Path(self.result).is_dir() else 'did not write'} {self.result}; run it by itself to see "
                f"why: pl-prefopt fit --config {self.config}"
            )
        stamp.write_text(key)


def start_method() -> str:
    """How a stage's process starts: "fork" spares it the imports, which take as long as a small model learns.

    It is "spawn" where a fork is not safe: beside CUDA, in a process group, and off Linux.
    """
    groups = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "fork" if sys.platform == "linux" and not groups and not torch.cuda.is_initialized() else "spawn"


def fit(config: str) -> None:
    """`pl-prefopt fit --config CONFIG` in this process, on one thread and without a place in a group."""
    from pl_prefopt.cli import main

    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    main(["fit", "--config", config])


def run_first_stages(trainer: Any, imports: Sequence[str] = ()) -> None:
    """Run the `RunFirst` callbacks of a trainer now: for a datamodule whose `setup` needs what they make."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, RunFirst) and trainer.is_global_zero:
            callback.run(imports)


def find_config(name: str) -> Path:
    """Path of a config, looked for in the working directory and beside the package.

    Raises:
        ValueError: it is in neither.
    """
    for base in (Path(), ROOT):
        if (base / name).is_file():
            return base / name
    raise ValueError(f"config {name!r} is neither in {Path.cwd()} nor in {ROOT}; run from a clone of the repository")


class PipelineExport(pl.Callback):
    """Write the whole diffusers pipeline around the trained denoiser, for a next stage to begin from.

    Args:
        path: folder, from the working directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it on one process."""
        if trainer.is_global_zero:
            module: Any = pl_module
            module.policy_builder.pipeline(module.policy).save_pretrained(self.path)
