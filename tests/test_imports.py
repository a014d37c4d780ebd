"""What an import costs, and which way imports point."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
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


# ---- the picture of imports: every import of every file counts, those in functions and under TYPE_CHECKING too ----

LAYERS = (
    ("utilities",),
    ("losses", "metrics", "mixtures", "rounds", "scores"),
    ("adapters", "diffusion", "logprobs", "objectives"),
    ("policies",),
    ("judges", "references"),
    ("modules",),
    ("experimental",),
    ("callbacks", "datamodules"),
    ("cli",),
    ("demo",),
    ("__init__", "__main__"),
)
"""A package imports from itself and from the packages of the rows above its own; never from its own row."""
APART = {"callbacks": {"modules", "experimental"}, "datamodules": {"modules", "experimental"}, "cli": {"experimental"}}
"""Rows above that a package does not import from all the same: the command line finds experiments by name."""
LIGHT = ("adapters", "diffusion", "judges", "logprobs", "losses", "mixtures", "objectives", "policies", "references")
LIGHT = (*LIGHT, "rounds", "scores", "utilities")
"""Packages in which heavy libraries are imported where they are used, not at the top."""


def source_files() -> dict[str, Path]:
    """Dotted name -> file of every module of the library; a package is the name of its `__init__`."""
    files = [p for p in (ROOT / "pl_prefopt").rglob("*.py") if not {"callbacks", "datamodules"} & set(p.parts)]
    files += [p for folder in ("callbacks", "datamodules") for p in (ROOT / folder).rglob("*.py")]
    names = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "pl_prefopt" else ("pl_prefopt", *parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


FILES = source_files()


def package(module: str) -> str:
    """The package below `pl_prefopt` that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names that import statements among the nodes name: modules, and names of modules."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def edges(module: str) -> set[str]:
    """Modules of the library that a module imports."""
    names = imported(ast.walk(ast.parse(FILES[module].read_text())))
    ours = {name for name in names if name.partition(".")[0] == "pl_prefopt"}
    return {name if name in FILES else name.rpartition(".")[0] for name in ours} - {module}


GRAPH = {module: edges(module) for module in FILES}


def test_every_package_has_a_layer_and_every_import_leads_to_a_file() -> None:
    assert {package(module) for module in FILES} == {name for row in LAYERS for name in row}
    assert {target for targets in GRAPH.values() for target in targets} <= FILES.keys()


def test_imports_go_to_lower_layers_only() -> None:
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    back = [
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if (here := package(module)) != (there := package(target))
        and (level[there] >= level[here] or there in APART.get(here, ()))
    ]
    assert back == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = TopologicalSorter(GRAPH)
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", FILES)
def test_nothing_private_and_no_second_lightning_is_imported(module: str) -> None:
    names = imported(ast.walk(ast.parse(FILES[module].read_text())))
    ours = [name for name in names if name.partition(".")[0] == "pl_prefopt"]
    private = [name for name in ours if any(re.match(r"_(?!_)", part) for part in name.split("."))]
    assert private == []
    roots = {name.partition(".")[0] for name in names}
    assert not roots & {"pytorch_lightning", "lightning_fabric", "datamodules", "callbacks", "tests", "benchmarks"}


@pytest.mark.parametrize("module", [module for module in FILES if package(module) in LIGHT])
def test_light_packages_import_heavy_libraries_where_they_use_them(module: str) -> None:
    at_the_top = imported(ast.parse(FILES[module].read_text()).body)
    assert not {name.partition(".")[0] for name in at_the_top} & set(HEAVY)
