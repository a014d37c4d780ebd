"""The demos by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pl_prefopt.demo.listing import CONFIGS, config_path, listing

ROOT = Path(__file__).parents[2]


def test_every_configuration_is_listed_with_a_title_and_a_time() -> None:
    assert {demo.name for demo in listing()} == {path.stem for path in (ROOT / "configs/demo").glob("*.yaml")}
    for demo in listing():
        assert 10 < len(demo.title) < 110
        assert 0 < float(demo.minutes) <= 2, demo.name
        assert f"pl-prefopt demo {demo.name}\n" in config_path(demo.name).read_text()


def test_the_package_reads_the_folder_of_the_repository() -> None:
    assert CONFIGS.resolve() == ROOT / "configs/demo"


def test_an_unknown_demo_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the demo must be one of image-ddo, .*, got 'text-none'"):
        config_path("text-none")
