"""`--ckpt_path`: which file `last` means; a file that cannot be continued from is refused before anything starts."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pl_prefopt.modules.checkpoints import TrainableCheckpoints

CHOSEN_BY_LIGHTNING = ("best", "hpc")
KINDS = {
    "state_dict": dict, "pytorch-lightning_version": str, "global_step": int, "loops": dict, "callbacks": dict,
    "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip
"""What a run continues from -> its type; the first two are enough to evaluate."""


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """The newest checkpoint of earlier runs with this configuration.

    It is looked for where the checkpoint callbacks write, in all versions of the loggers' folders.

    Raises:
        FileNotFoundError: there is none; the folders are named.
    """
    folders = [Path(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    root = Path(trainer.default_root_dir)
    for logger in trainer.loggers:
        folders.append(Path(logger.save_dir or root) / str(logger.name) / "*" / "checkpoints")
    folders.append(root / "checkpoints")
    patterns = [folder.absolute() / "*.ckpt" for folder in folders]
    files = [file for path in patterns for file in Path(path.anchor).glob(str(path.relative_to(path.anchor)))]
    if not files:
        raise FileNotFoundError(
            f"ckpt_path must name a checkpoint, got last, but no run has left one in "
            f"{' or '.join(dict.fromkeys(map(str, folders)))}. Start without ckpt_path, or name the file"
        )
    return max(files, key=lambda file: file.stat().st_mtime)


def check_checkpoint(file: Path, model: pl.LightningModule, subcommand: str, weights_only: bool = True) -> None:
    """Refuse a file that a run cannot continue from, or weights that cannot be evaluated.

    Args:
        file: the checkpoint; a folder is a sharded one, which its strategy reads.
        model: the module that will load it.
        subcommand: "fit" needs loops and optimizer states too.
        weights_only: False where the user trusts the file to run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no checkpoint, or lacks something; the newest intact file beside it is named.
    """
    if file.is_dir():
        return
    if not file.is_file():
        kind = "no regular file" if file.exists() else "absent"
        raise FileNotFoundError(
            f"ckpt_path must be a checkpoint, got {str(file)!r}, which is {kind}.{beside(file, model, subcommand)}"
        )
    try:
        problem = content_problem(read_checkpoint(file, weights_only), model, subcommand)
    except DamagedError as error:
        raise ValueError(
            f"{file}: must be a checkpoint of Lightning, {error}.{beside(file, model, subcommand)}"
        ) from error
    if problem:
        raise ValueError(f"{file}: {problem}.{beside(file, model, subcommand)}")


class DamagedError(Exception):
    """A file that is no readable checkpoint; the message continues "must be a checkpoint, ..."."""


def read_checkpoint(file: Path, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint into mapped memory; nothing in it is executed.

    Raises:
        DamagedError: saying what the file is.
    """
    if file.stat().st_size == 0:
        raise DamagedError("got an empty file")
    if not is_zipfile(file):
        with file.open("rb") as content:
            kind = "a part of one" if content.read(2) == b"PK" else "a file of another kind"
        raise DamagedError(f"got {kind}")
    try:
        with ZipFile(file) as archive:
            if (record := archive.testzip()) is not None:
                raise DamagedError(f"got a damaged file (the checksum of {record} differs)")
        checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        program = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f"names the program {program[1]!r}" if program else "is more than tensors and plain values"
        raise DamagedError(
            f"got a file that {named}; weights_only reads tensors and plain values and has run nothing. Use it only if "
            "you trust its source"
        ) from error
    except DamagedError:
        raise
    except Exception as error:  # torch.load raises what its readers raise: RuntimeError, KeyError, EOFError, ...
        raise DamagedError("got a damaged file or an archive of something else") from error
    if not isinstance(checkpoint, dict):
        raise DamagedError(f"got a file that holds a {type(checkpoint).__name__}")
    return checkpoint


def content_problem(checkpoint: Mapping[str, Any], model: pl.LightningModule, subcommand: str) -> str:
    """What a checkpoint lacks, empty if nothing."""
    needed = KINDS if subcommand == "fit" else list(KINDS)[:2]
    if missing := [key for key in needed if key not in checkpoint]:
        keys = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        return f"must hold {', '.join(missing)} to {subcommand} from it, got {keys}. Use a checkpoint of a run"
    for key, kind in KINDS.items():
        if not isinstance(checkpoint.get(key, kind()), kind):
            return f"{key} must be of type {kind.__name__}, got {type(checkpoint[key]).__name__}"
    state = checkpoint["state_dict"]
    if isinstance(model, TrainableCheckpoints):
        for name, value in state.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return f"weights must be floating, got {name} of {getattr(value, 'dtype', type(value).__name__)}"
            if not bool(torch.isfinite(value).all()):
                return f"weights must be finite, got NaN or infinite entries in {name}"
    if subcommand != "fit":
        return ""
    if "fit_loop" not in checkpoint["loops"]:
        return "loops must hold fit_loop, got none"
    for optimizer in checkpoint["optimizer_states"] or [{}]:
        if not isinstance(optimizer, Mapping) or not {"state", "param_groups"} <= optimizer.keys():
            return "optimizer_states must be those of a run, got an empty one or something else"
        has_state = any(group.get(key) for group in optimizer["param_groups"] for key in ("betas", "momentum"))
        if has_state and checkpoint["global_step"] and not optimizer["state"]:
            return f"the optimizer state must be that of step {checkpoint['global_step']}, got an empty one"
    return ""


def beside(file: Path, model: pl.LightningModule, subcommand: str) -> str:
    """A sentence that names the newest intact checkpoint in the folder of a file, empty where there is none."""
    others = [other for other in file.parent.glob("*.ckpt") if other.is_file() and other.name != file.name]
    for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            if not content_problem(read_checkpoint(other), model, subcommand):
                return f" The newest intact checkpoint beside it is {other}"
        except DamagedError:
            continue
    return ""
