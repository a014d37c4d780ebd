"""The package list, the wheel and the map of the three importable folders agree."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import pl_prefopt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"pl_prefopt": "pl_prefopt", "pl_prefopt.callbacks": "callbacks", "pl_prefopt.datamodules": "datamodules"}
DATA = {"pl_prefopt.demo.configs": "configs/demo"}
"""Packages of data alone, without modules, and the folder of each."""
EXTRAS = ["image", "audio", "lidar", "vlm", "retrieval", "mixture"]


def on_disk() -> set[str]:
    """Packages that stand in the three folders, links not followed."""
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            if not any((ROOT / folder).joinpath(*parts[: i + 1]).is_symlink() for i in range(len(parts))):
                found.add(".".join((package, *parts)))
    return found


def test_the_package_list_is_what_stands_on_disk() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk() | DATA.keys()
    assert PROJECT["tool"]["setuptools"]["package-dir"] == FOLDERS | DATA


def test_the_links_inside_the_package_point_to_the_folders() -> None:
    for name in ("callbacks", "datamodules"):
        link = ROOT / "pl_prefopt" / name
        if link.is_symlink():
            assert str(link.readlink()) == f"../{name}"
    assert str((ROOT / "pl_prefopt/demo/configs").readlink()) == "../../configs/demo"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the contents of a wheel that was built from a copy of the sources without their links."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*FOLDERS.values(), *DATA.values()):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("callbacks", "datamodules", "demo/configs"):
        (source / "pl_prefopt" / name).unlink()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(work), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    target = work / "site"
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def test_the_wheel_holds_every_file(installed: Path) -> None:
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT)
            if folder != "pl_prefopt":
                inside = Path("pl_prefopt") / inside
            assert (installed / inside).is_file(), f"{inside} is not in the wheel"
    assert (installed / "pl_prefopt/py.typed").is_file()
    for path in (ROOT / "configs/demo").glob("*.yaml"):
        assert (installed / "pl_prefopt/demo/configs" / path.name).read_bytes() == path.read_bytes()
    for path in (ROOT / "pl_prefopt/demo/bases").rglob("*.*"):
        assert (installed / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert not (installed / "datamodules").exists()
    assert not (installed / "callbacks").exists()


def run(code: str, installed: Path, folder: str | Path = "/") -> subprocess.CompletedProcess[str]:
    """Run code in a folder with the wheel's contents in front of everything else and the checkout out of sight."""
    lines = f"import sys; sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]; "
    command = [sys.executable, "-c", lines + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_installed_package_imports_from_anywhere(installed: Path) -> None:
    code = (
        "import pl_prefopt.datamodules as d, pl_prefopt.callbacks as c, pl_prefopt.losses; "
        "assert d.TextPreferenceDataModule.__module__ == 'pl_prefopt.datamodules.text.datamodule'; "
        "print(pl_prefopt.__file__, d.__file__, c.__file__)"
    )
    done = run(code, installed)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(installed)) for path in done.stdout.split())


def test_the_installed_command_lists_and_runs_the_demos(installed: Path, tmp_path: Path) -> None:
    command = "from pl_prefopt.cli import console; sys.argv[:] = ['pl-prefopt', 'demo', *{}]; console()"
    listed = run(command.format([]), installed, tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert all(path.stem in listed.stdout for path in (ROOT / "configs/demo").glob("*.yaml"))
    small = ["--data.rows=32", "--data.eval_rows=8", "--data.batch_size=16", "--trainer.max_steps=2",
             "--trainer.val_check_interval=2", f"--data.cache_dir={tmp_path / 'cache'}",
             "--data.world=pl_prefopt.demo.text.world.SentimentWorld", "--data.world.max_words=2"]  # fmt: skip
    done = run(command.format(["text-dpo", *small]), installed, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "What 2 steps taught" in done.stdout
    assert (tmp_path / "runs/demo/text-dpo/lightning_logs/version_0/report.json").is_file()


@pytest.mark.parametrize("name", ["datamodules", "callbacks"])
def test_the_folders_do_not_import_by_their_bare_names(name: str, installed: Path) -> None:
    assert "ModuleNotFoundError" in run(f"import {name}", installed).stderr
    bare = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"]
    done = subprocess.run(bare, capture_output=True, text=True, cwd="/", check=False)
    assert f"ImportError: import pl_prefopt.{name} instead of {name}" in done.stderr


def metadata(installed: Path) -> str:
    return next(installed.glob("*.dist-info/METADATA")).read_text()


def test_the_metadata_says_what_is_needed(installed: Path) -> None:
    text = metadata(installed)
    assert f"Version: {pl_prefopt.__version__}\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert set(re.findall(r"Provides-Extra: (\S+)", text)) == {*EXTRAS, "all", "test", "docs"}
    assert PROJECT["project"]["optional-dependencies"]["all"] == [f"pl_prefopt[{','.join(EXTRAS)}]"]
    entry = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "pl-prefopt = pl_prefopt.cli:console" in entry


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {_name(line.split("==")[0]): line.split("==")[1] for line in lines if line}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_dependency_to_one_version() -> None:
    optional = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *optional["test"], *optional["image"]]
    everywhere = [a for a in asked if ";" not in a]
    names = {_name(re.split(r"[\[<>=!~ ]", a)[0]) for a in everywhere} - {"pl-prefopt"}
    assert not names - pins().keys()
    text = "\n".join(f"{name}=={version}" for name, version in pins().items())
    assert not re.search(r"@|://|^-|/", text, re.M), "no paths, no hosts"
    assert pins()["torch"] == "2.11.0"
    assert pins()["lightning"] == "2.6.6"


def test_what_the_library_imports_it_asks_for() -> None:
    other = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "open_clip": "open-clip-torch",
        "sklearn": "scikit-learn",
        "skimage": "scikit-image",
    }
    optional = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(a for extra in EXTRAS for a in optional[extra])]
    names = {_name(re.split(r"[\[<>=!~ ;]", a)[0]) for a in asked}
    used = set()
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    used |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    used.add(str(node.module).partition(".")[0])
    foreign = {_name(other.get(m) or m) for m in used - set(sys.stdlib_module_names) - {"pl_prefopt"}}
    assert foreign - names == set(), "no extra names them"


def test_malicious_releases_cannot_be_resolved() -> None:
    line = next(d for d in PROJECT["project"]["dependencies"] if d.startswith("lightning"))
    allowed = Requirement(line).specifier
    assert not [v for v in ("2.6.2", "2.6.3", "2.6.5") if v in allowed]
    assert "2.6.6" in allowed


def test_the_changelog_and_the_citation_know_the_version() -> None:
    assert f"## [{pl_prefopt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {pl_prefopt.__version__}" in (ROOT / "CITATION.cff").read_text()
