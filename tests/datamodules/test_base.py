"""What the base class does for every modality, and refuses to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pl_prefopt.datamodules import PreferenceDataModule


def test_the_base_class_writes_no_files(tmp_path: Path) -> None:
    data = PreferenceDataModule()
    with pytest.raises(TypeError, match=r"PreferenceDataModule must define write_samples\(root, name, samples\)"):
        data.write_samples(tmp_path, "x", [])
    with pytest.raises(TypeError, match=r"PreferenceDataModule must define write_pairs\(root, name, rows\)"):
        data.write_pairs(tmp_path, "x", [])
    assert list(tmp_path.iterdir()) == []


def test_without_training_files_rows_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="train must be files for PreferenceDataModule to replace its training rows"):
        PreferenceDataModule().replace_train("pairs.jsonl")
