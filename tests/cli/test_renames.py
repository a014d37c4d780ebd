"""Configurations in the spelling of older versions are read, with a warning that names the new one."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.cli import PrefOptCLI, main
from pl_prefopt.cli.renames import PATHS, current_paths
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import FDPO
from tests.cli.test_main import config, put, write

MOVED = {"max_length": "cut.longest", "side": "cut.side"}


@dataclass(frozen=True)
class Cut:
    """Two settings that were arguments of `Data` once."""

    longest: int = 10
    side: str = "left"


class Data(pl.LightningDataModule):
    """A datamodule whose flat arguments moved into `cut`."""

    def __init__(self, cut: Cut = Cut(), size: int = 1) -> None:
        super().__init__()
        self.cut = cut
        self.size = size


class More(Data):
    """A class on top of it."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefOptCLI, "_run_subcommand", lambda self, subcommand: None)


def run(folder: Path, data: Any, *options: str) -> Any:
    values = config(folder) | {"data": data}
    return main(["fit", "--config", write(folder, values), *options]).datamodule


@pytest.mark.parametrize("cls", ["Data", "More"])
def test_moved_arguments_in_a_file(cls: str, tmp_path: Path, built: None) -> None:
    arguments = {"max_length": 5, "size": 2}
    with pytest.warns(FutureWarning, match=r"^max_length has moved to cut\.longest"):
        data = run(tmp_path, {"class_path": f"tests.cli.test_renames.{cls}", "init_args": arguments})
    assert (data.cut, data.size) == (Cut(longest=5), 2)


@pytest.mark.parametrize("option", ["--data.max_length=6", "--data.init_args.max_length=6"])
def test_moved_arguments_in_the_command(option: str, tmp_path: Path, built: None) -> None:
    with pytest.warns(FutureWarning, match="max_length has moved"):
        data = run(tmp_path, {"class_path": "tests.cli.test_renames.Data", "init_args": {"side": "right"}}, option)
    assert data.cut == Cut(longest=6, side="right")


def test_the_new_spelling_gives_no_warning(tmp_path: Path, built: None, recwarn: pytest.WarningsRecorder) -> None:
    data = {"class_path": "tests.cli.test_renames.Data", "init_args": {"cut": {"side": "right"}}}
    assert run(tmp_path, data, "--data.cut.longest=7").cut == Cut(7, "right")
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]


@pytest.mark.parametrize(("old", "new"), PATHS.items())
def test_a_moved_class_or_module_is_where_the_table_says(old: str, new: str) -> None:
    assert pkgutil.resolve_name(f"pl_prefopt.{new}")
    with pytest.warns(FutureWarning, match=rf"^pl_prefopt\.{old} has moved to pl_prefopt\.{new};"):
        text = current_paths(f"- class_path: pl_prefopt.{old}.Name  # a comment\n")
    assert text == f"- class_path: pl_prefopt.{new}.Name  # a comment\n"


def test_other_paths_stay(recwarn: pytest.WarningsRecorder) -> None:
    text = "pl_prefopt.judges.rules_of_mine.A, mine.pl_prefopt.judges.rules.B, pl_prefopt.objectives.DPO"
    assert current_paths(text) == text
    assert not recwarn


@pytest.mark.parametrize("where", ["file", "command"])
def test_an_old_class_path_is_read(where: str, tmp_path: Path, built: None) -> None:
    old, options = "pl_prefopt.objectives.pairwise.FDPO", []
    values = config(tmp_path)
    if where == "file":
        values["model"]["init_args"]["objective"] = {"class_path": old, "init_args": {"beta": 0.3}}
    else:
        options = [f"--model.objective={old}", "--model.objective.beta=0.3"]
    with pytest.warns(FutureWarning, match=r"has moved to pl_prefopt\.objectives\.divergence\.FDPO"):
        cli = main(["fit", "--config", write(tmp_path, values), *options])
    assert cli.model.objective == FDPO(beta=0.3)


def test_a_run_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    """Its checkpoint names classes by the files that they were in, and lacks arguments that were added since."""
    values = put(config(tmp_path), "model.init_args.objective", {"class_path": "FDPO", "init_args": {"beta": 0.3}})
    args = ["fit", "--config", write(tmp_path, values)]
    main(args)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    saved = checkpoint["hyper_parameters"]
    saved["objective"] = {"class_path": "pl_prefopt.objectives.pairwise.FDPO", "init_args": {"beta": 0.3}}
    saved["policy"]["class_path"] = "pl_prefopt.policies.moved_since.CausalLM"
    saved["reference"]["class_path"] = "pl_prefopt.references.AutoReference"
    del saved["policy"]["init_args"]["seed"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resumed = [*args, "--ckpt_path", str(tmp_path / "old.ckpt"), "--trainer.max_epochs=2"]
    assert main(resumed).trainer.global_step == 6
    assert TextPreferenceModule.load_from_checkpoint(tmp_path / "old.ckpt").objective == FDPO(beta=0.3)
    with pytest.raises(ValueError, match=r"objective\.init_args\.beta: 0\.3 != 0\.2"):
        main([*resumed, "--model.objective.beta=0.2"])
