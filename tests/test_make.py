"""`make` reuses an environment only while everything that it was made from is the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the key is made of, beside the Makefile."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def planned(folder: Path, *variables: str) -> str:
    """Commands that `make environment` would run."""
    command = ["make", "-n", "--no-print-directory", "environment", *variables]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def finish(folder: Path, plan: str) -> None:
    """Leave the marks of a finished installation."""
    (folder / ".venv").mkdir(exist_ok=True)
    for line in plan.splitlines():
        if line.startswith("touch "):
            (folder / line.removeprefix("touch ").strip('"')).touch()


def test_a_finished_environment_is_used_again(checkout: Path) -> None:
    plan = planned(checkout)
    assert "pip install" in plan
    finish(checkout, plan)
    assert "pip install" not in planned(checkout)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_what_it_was_made_from_makes_it_anew(name: str, checkout: Path) -> None:
    finish(checkout, planned(checkout))
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert "-c constraints.txt" in planned(checkout)


def test_another_clone_installs_itself_into_a_shared_environment(checkout: Path, tmp_path: Path) -> None:
    finish(checkout, planned(checkout))
    other = tmp_path / "other clone"
    other.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(checkout / name, other)
    plan = planned(other, f"PL_PREFOPT_VENV={checkout / '.venv'}")
    assert "-c constraints.txt" not in plan
    assert "--no-deps" in plan


def test_the_entry_of_continuous_integration_is_make_test() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "make --no-print-directory test" in text
    assert "CI=true" in text
