"""Earlier flat arguments of text and image datamodules, and the objects that took their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule, TextPreferenceDataModule, Truncation
from pl_prefopt.datamodules.image import geometry
from pl_prefopt.datamodules.text import truncate

TEXT = {"max_length": 64, "max_prompt_length": 20, "prompt_truncation": "drop", "completion_truncation": "error"}
IMAGE = {
    "resolution": [8, 16], "crop": "pad", "flip": 0.5, "crop_variants": 2, "interpolation": "bicubic",
    "buckets": [[8, 16]],
}  # fmt: skip
CASES: list[tuple[type, dict[str, Any], dict[str, str], str, object]] = [
    (TextPreferenceDataModule, TEXT, truncate.MOVED, "truncation", Truncation(64, 20, "drop", "error")),
    (
        ImagePreferenceDataModule,
        IMAGE,
        geometry.MOVED,
        "geometry",
        Geometry([8, 16], "pad", 0.5, 2, "bicubic", [[8, 16]]),
    ),
]


@pytest.mark.parametrize(("datamodule", "old", "moved", "name", "new"), CASES)
def test_old_arguments_are_those_of_the_new_object(
    datamodule: type, old: dict[str, Any], moved: dict[str, str], name: str, new: object
) -> None:
    assert old.keys() == moved.keys()
    with pytest.warns(FutureWarning, match=f"{datamodule.__name__}: .* is now {name}"):
        before = datamodule("pairs.jsonl", **old)
    assert dict(before.hparams) == dict(datamodule("pairs.jsonl", **{name: new}).hparams)
    for key in old:
        with pytest.raises(ValueError, match=f"{key} must be given as {moved[key]} only"):
            datamodule("pairs.jsonl", **{key: old[key], name: new})


@pytest.mark.parametrize(("datamodule", "old", "moved", "name", "new"), CASES)
def test_hyper_parameters_rebuild_the_datamodule(
    datamodule: type, old: dict[str, Any], moved: dict[str, str], name: str, new: object
) -> None:
    first = datamodule("pairs.jsonl", tokenizer="x", **{name: new}) if name == "truncation" else datamodule(
        "pairs.jsonl", **{name: new}
    )  # fmt: skip
    assert dict(datamodule(**first.hparams).hparams) == dict(first.hparams)
    assert isinstance(first.hparams[name], dict)


def test_yaml_and_the_command_line_name_the_fields() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextPreferenceDataModule, "data")
    options = ["--data.train=a.jsonl", "--data.truncation.max_length=64", "--data.truncation.prompt=drop"]
    data = parser.instantiate(parser.parse_args(["--data=TextPreferenceDataModule", *options])).data
    assert data.hparams["truncation"] == {
        "max_length": 64, "max_prompt_length": None, "prompt": "drop", "completion": "keep_start",
    }  # fmt: skip


def test_the_seed_of_the_geometry_is_that_of_the_datamodule_unless_it_has_its_own(tmp_path: Path) -> None:
    assert ImagePreferenceDataModule("a.jsonl", seed=3).geometry.seed == 3
    assert ImagePreferenceDataModule("a.jsonl", geometry=Geometry(seed=1), seed=3).geometry.seed == 1
