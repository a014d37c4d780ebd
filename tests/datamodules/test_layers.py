"""The datamodules stand in layers: imports point down only, and nobody imports another file's private names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.datamodules.sample_files import ROOT

PACKAGE = "pl_prefopt.datamodules"
LAYERS = {
    "files": (),
    "loading": ("files",),
    "base": ("files", "loading"),
    "media": ("files", "loading", "base"),
    "tokenizers": (),
    "prompts": (),
    "text": ("files", "loading", "base", "tokenizers"),
    "image": ("files", "loading", "base", "media"),
}
"""Folder or file -> those from which it may import, beside itself."""
FILES = sorted(path for path in (ROOT / "datamodules").rglob("*.py") if path.parent.name != "datamodules")
FILES += [ROOT / "datamodules" / f"{name}.py" for name in ("base", "tokenizers", "prompts")]


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import from this project, wherever it stands in the file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(n.module, a.name) for n in nodes if n.module and n.module.startswith("pl_prefopt") for a in n.names]


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_to_lower_layers(path: Path) -> None:
    mine = layer(path.relative_to(ROOT / "datamodules").parts)
    for module, name in imported(path):
        if module.startswith(f"{PACKAGE}."):
            theirs = layer(tuple(module.removeprefix(f"{PACKAGE}.").split(".")))
            assert theirs in (mine, *LAYERS[mine]), f"{mine} imports {module}"
        assert module != PACKAGE, "the public names are for users; import from the file that defines them"
        assert not name.startswith("_"), f"{module}.{name} is private"


def test_no_circles_between_files() -> None:
    """Imports at the top of files, by depth-first search."""

    def targets(path: Path) -> set[Path]:
        body = ast.parse(path.read_text()).body
        modules = [n.module for n in body if isinstance(n, ast.ImportFrom) and n.module]
        files = [ROOT / "datamodules" / (m.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py") for m in modules]
        return {file for file in files if file in FILES}

    graph = {path: targets(path) for path in FILES}
    finished: set[Path] = set()

    def visit(path: Path, chain: tuple[Path, ...]) -> None:
        assert path not in chain, f"circle: {[p.name for p in (*chain, path)]}"
        if path not in finished:
            for target in graph[path]:
                visit(target, (*chain, path))
            finished.add(path)

    for path in FILES:
        visit(path, ())
