"""`--ckpt_path`: damaged, foreign and incomplete files are refused before training; `last` means the last run's."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.cli import main
from tests.cli.console import Failing, failing
from tests.cli.test_main import config, write
from tests.runs import write_pairs

__all__ = ["failing"]
Values = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run: c.yaml and a.ckpt."""
    folder = tmp_path_factory.mktemp("finished")
    main(["fit", "--config", write(folder, config(folder))])
    return folder


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.txt", "x")
    return content.getvalue()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


FILES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("cut in half", lambda content: content[: len(content) // 2], "got a part of one"),
    ("flipped byte", flipped, "got a damaged file (the checksum of"),
    ("text", lambda _: b"hello\n", "got a file of another kind"),
    ("empty", lambda _: b"", "got an empty file"),
    ("zip of something else", lambda _: archive(), "got a damaged file or an archive of something else"),
    ("plain pickle", lambda _: pickle.dumps({"state_dict": {}}), "got a file of another kind"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in FILES], ids=[name for name, *_ in FILES])
def test_a_file_that_is_no_checkpoint_is_refused_and_the_intact_one_beside_it_named(
    change: Callable[[bytes], bytes], words: str, finished: Path, tmp_path: Path, failing: Failing
) -> None:
    shutil.copy(finished / "a.ckpt", tmp_path / "intact.ckpt")
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(change((finished / "a.ckpt").read_bytes()))
    status, said = failing("fit", "--config", finished / "c.yaml", "--ckpt_path", bad)
    assert status == 1
    assert said.startswith(f"{bad}: must be a checkpoint of Lightning, {words}")
    assert f"The newest intact checkpoint beside it is {tmp_path / 'intact.ckpt'}" in said


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Values], Values]:
    return lambda saved: saved | {"state_dict": {k: change(v) for k, v in saved["state_dict"].items()}}


def without(*keys: str) -> Callable[[Values], Values]:
    return lambda saved: {key: value for key, value in saved.items() if key not in keys}


def no_moments(saved: Values) -> Values:
    return saved | {"optimizer_states": [state | {"state": {}} for state in saved["optimizer_states"]]}


CONTENTS: list[tuple[str, Callable[[Values], Any], str]] = [
    ("a list", lambda saved: [1, 2], "got a file that holds a list"),
    ("nothing", lambda saved: {}, "must hold state_dict, "),
    ("no state_dict", without("state_dict"), "must hold state_dict to fit from it, got epoch, global_step"),
    ("no loops", without("loops"), "must hold loops to fit from it"),
    ("no version", without("pytorch-lightning_version"), "must hold pytorch-lightning_version"),
    ("weights only", without("optimizer_states", "lr_schedulers"), "must hold optimizer_states, lr_schedulers"),
    ("no optimizer state", lambda saved: saved | {"optimizer_states": []}, "optimizer_states must be those of a run"),
    ("no moments", no_moments, "the optimizer state must be that of step 3, got an empty one"),
    ("loops of nothing", lambda saved: saved | {"loops": {}}, "loops must hold fit_loop"),
    ("callbacks as text", lambda saved: saved | {"callbacks": "x"}, "callbacks must be of type dict, got str"),
    ("integers", weights(torch.Tensor.long), "weights must be floating, got policy."),
    ("NaN", weights(lambda value: value * torch.nan), "weights must be finite, got NaN"),
    ("another model", weights(lambda value: value[:1]), "belongs to another model; its tensors are"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in CONTENTS], ids=[name for name, *_ in CONTENTS])
def test_a_checkpoint_that_a_run_cannot_continue_from_is_refused(
    change: Callable[[Values], Any], words: str, finished: Path, tmp_path: Path, failing: Failing
) -> None:
    bad = tmp_path / "bad.ckpt"
    torch.save(change(torch.load(finished / "a.ckpt", weights_only=True)), bad)
    status, said = failing("fit", "--config", finished / "c.yaml", "--ckpt_path", bad, "--trainer.max_epochs=2")
    assert status == 1
    assert said.startswith(str(bad))
    assert words in said


def test_weights_alone_are_enough_to_validate(finished: Path, tmp_path: Path) -> None:
    saved = torch.load(finished / "a.ckpt", weights_only=True)
    torch.save(without("optimizer_states", "lr_schedulers", "callbacks")(saved), tmp_path / "weights.ckpt")
    val = write_pairs(tmp_path / "val.jsonl", 5)
    args = ["--config", str(finished / "c.yaml"), f"--data.val={val}", f"--trainer.default_root_dir={tmp_path}"]
    cli = main(["validate", *args, f"--ckpt_path={tmp_path / 'weights.ckpt'}", "--trainer.logger=false"])
    assert "val/loss" in cli.trainer.callback_metrics


def test_last_is_the_newest_checkpoint_of_the_last_run_with_the_shipped_settings(
    tmp_path: Path, failing: Failing
) -> None:
    """Lightning started from zero: a new run has a new version, and without save_last there is no last.ckpt."""
    values = config(tmp_path)
    values["trainer"] |= {"callbacks": [], "default_root_dir": str(tmp_path / "runs"), "logger": True}
    path = write(tmp_path, values)
    status, said = failing("fit", "--config", path, "--ckpt_path=last")
    assert status == 1
    assert said.startswith("ckpt_path must name a checkpoint, got last, but no run has left one in")
    assert str(tmp_path / "runs") in said
    main(["fit", "--config", path])
    cli = main(["fit", "--config", path, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert cli.trainer.global_step == 6
    assert "version_1" in str(cli.trainer.log_dir)
    files = sorted(tmp_path.glob("runs/**/*.ckpt"), key=os.path.getmtime)
    assert torch.load(files[-1], weights_only=True)["global_step"] == 6
    files[-1].write_bytes(b"PK")
    status, said = failing("fit", "--config", path, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert (status, str(files[-1]) in said) == (1, True)


def test_a_missing_file_and_an_empty_folder_are_named(finished: Path, tmp_path: Path, failing: Failing) -> None:
    shutil.copy(finished / "a.ckpt", tmp_path / "intact.ckpt")
    said = failing("fit", "--config", finished / "c.yaml", "--ckpt_path", tmp_path / "absent.ckpt")[1]
    assert said.startswith(f"ckpt_path must be a checkpoint, got '{tmp_path / 'absent.ckpt'}', which is absent.")
    assert "The newest intact checkpoint beside it is" in said
    (tmp_path / "folder").mkdir()
    said = failing("fit", "--config", finished / "c.yaml", "--ckpt_path", tmp_path / "folder")[1]
    assert said.startswith("ckpt_path must be a path that can be used")
