"""What an import costs, and which way imports point."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pl_prefopt

ROOT = Path(__file__).parent.parent
HEAVY = ("lightning", "transformers", "peft", "diffusers", "torchmetrics", "datasets", "matplotlib")


def measure(statement: str) -> dict:
    code = (
        f"import time, sys, json, torch; start = time.perf_counter(); {statement}; "
        "print(json.dumps({'seconds': time.perf_counter() - start, 'modules': list(sys.modules)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "statement", ["import pl_prefopt", "import pl_prefopt.losses", "import pl_prefopt.datamodules"]
)
def test_an_import_stays_light(statement: str) -> None:
    cost = measure(statement)
    loaded = {name.partition(".")[0] for name in cost["modules"]}
    assert not loaded & set(HEAVY)
    assert cost["seconds"] < 2, "beyond what torch takes"


def test_the_whole_first_import_takes_at_most_two_seconds() -> None:
    """The best of three, in case the machine is busy."""
    code = "import time; s = time.perf_counter(); import pl_prefopt; print(time.perf_counter() - s)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) <= 2


def test_parts_are_reached_through_the_package() -> None:
    assert pl_prefopt.losses.dpo_loss is sys.modules["pl_prefopt.losses"].dpo_loss
    assert pl_prefopt.objectives.__name__ == "pl_prefopt.objectives"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pl_prefopt.nothing


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = [p for folder in ("pl_prefopt", "callbacks", "datamodules") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_imports_point_one_way_and_to_one_lightning(path: Path) -> None:
    names, where = imports(path), str(path.relative_to(ROOT))
    forbidden = ["pytorch_lightning", "lightning_fabric", "datamodules", "callbacks"]
    if where.startswith("callbacks/") or "/callbacks/" in where:
        forbidden += ["pl_prefopt.modules", "pl_prefopt.datamodules"]
    core = not where.startswith(("callbacks", "datamodules", "pl_prefopt/callbacks", "pl_prefopt/datamodules"))
    if core and not where.startswith(
        ("pl_prefopt/__init__", "pl_prefopt/_registry", "pl_prefopt/cli", "pl_prefopt/demo")
    ):
        forbidden += ["pl_prefopt.callbacks", "pl_prefopt.datamodules"]
    if where.startswith("pl_prefopt/losses"):
        forbidden += ["lightning", "pl_prefopt.objectives", "pl_prefopt.modules"]
    if where.startswith("pl_prefopt/objectives"):
        forbidden += ["lightning", "pl_prefopt.modules"]
    wrong = {n for n in names for f in forbidden if n == f or n.startswith(f + ".")}
    assert not wrong
