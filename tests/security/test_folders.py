"""Folders of somebody else: what they name is not imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.console import Failing, failing
from tests.cli.test_main import config, write

__all__ = ["failing"]


def test_a_pipeline_folder_cannot_name_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    """The library of model_index.json went to import_module."""
    pytest.importorskip("diffusers")
    from tests.policies.test_diffusion import edit, saved_pipeline

    folder = saved_pipeline("sd", tmp_path / "model")
    edit(folder / "model_index.json", unet=["stolen", "UNet"])
    steal(tmp_path, monkeypatch)
    values = config(tmp_path) | {
        "model": {
            "class_path": "ImagePreferenceModule",
            "init_args": {
                "policy": {"class_path": "Diffusion", "init_args": {"pretrained": str(folder)}},
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
    }
    status, said = failing("fit", "--config", write(tmp_path, values))
    assert status in (1, 2)
    assert "must be a class of diffusers or transformers, got UNet of stolen" in said
    assert_not_stolen(tmp_path)


@pytest.mark.parametrize("key", ["policy", "tokenizer"])
def test_a_text_model_folder_cannot_bring_its_own_code(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    """auto_map names modelling and tokenizer files of the folder; they run only where trust_remote_code says so."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stolen.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    auto = '{"model_type": "x", "auto_map": {"AutoConfig": "stolen.C", "AutoModelForCausalLM": "stolen.M"}}'
    (folder / "config.json").write_text(auto)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["stolen.T", null]}}')
    steal(tmp_path, monkeypatch)
    values: dict[str, Any] = config(tmp_path)
    if key == "policy":
        values["model"]["init_args"]["policy"]["init_args"] = {"pretrained": str(folder)}
    else:
        tokenizer = {"class_path": "PretrainedTokenizer", "init_args": {"name": str(folder)}}
        values["data"]["init_args"]["tokenizer"] = tokenizer
    assert failing("fit", "--config", write(tmp_path, values))[0] == 1
    assert_not_stolen(tmp_path)


def steal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module into the working directory that leaves a mark when it is imported."""
    (folder / "stolen.py").write_text(f"open({str(folder / 'mark')!r}, 'w')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


def assert_not_stolen(folder: Path) -> None:
    assert not (folder / "mark").exists()
    assert "stolen" not in sys.modules
