from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pl_prefopt.datamodules.text import TextPreferenceDataModule
from pl_prefopt.datamodules.text.formats import TEXT_COLUMNS
from tests.datamodules.sample_files import ROOT, word_pairs, write_jsonl

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_first_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "pairs.jsonl", word_pairs(40))
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(block, names)
    assert names["batch"]["prompt_ids"].shape[0] == 8  # type: ignore[index]


def test_the_yaml_names_real_arguments() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    data = yaml.safe_load(block)["data"]
    assert TextPreferenceDataModule(**data["init_args"]).names("val") == []


def test_every_column_is_explained() -> None:
    assert [name for name in TEXT_COLUMNS if name not in TEXT and name != "system"] == []
