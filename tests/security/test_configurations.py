"""Configurations of somebody else: YAML tags build nothing, files are read as plain values."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.console import Failing, failing
from tests.cli.test_main import config, write

__all__ = ["failing"]
TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:subprocess.Popen [[touch, '{mark}']]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object:os.system {{}}",
    "!custom {{a: 1}}",
]


@pytest.mark.parametrize("tag", TAGS, ids=[tag.split()[0] for tag in TAGS])
def test_yaml_tags_are_refused_by_name_and_never_applied(tag: str, tmp_path: Path, failing: Failing) -> None:
    mark = tmp_path / "mark"
    path = Path(write(tmp_path, config(tmp_path)))
    path.write_text(f"seed_everything: {tag.format(mark=mark)}\n{path.read_text()}")
    status, said = failing("fit", "--config", path)
    assert status == 2
    assert f"{path}, line 1: tags are not read, got '{tag.split()[0]}'" in said
    assert not mark.exists()


@pytest.mark.parametrize("option", ["--data.train", "--model.policy", "--model.objective", "--trainer.callbacks"])
def test_yaml_tags_in_options_and_in_nested_files_are_never_applied(
    option: str, tmp_path: Path, failing: Failing
) -> None:
    mark = tmp_path / "mark"
    tag = TAGS[0].format(mark=mark)
    nested = tmp_path / "nested.yaml"
    nested.write_text(tag)
    path = write(tmp_path, config(tmp_path))
    for value in (tag, nested):
        failing("fit", "--config", path, f"{option}={value}")
    assert not mark.exists()
