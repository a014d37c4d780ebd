"""Every YAML file in configs/ is parsed against the signatures of the classes it names; nothing is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from pl_prefopt.cli import PrefOptCLI, main

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = sorted(f for part in ("strategy", "callbacks") for f in (ROOT / "configs" / part).glob("*.yaml"))
RUNS = [f for f in FILES if f not in OVERLAYS]
BASE = ROOT / "configs/recipes/text/zephyr-7b-dpo.yaml"


class Kept(Callback):
    """Stands in the base configuration; an overlay must not delete it."""


def names(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT / "configs")) for p in paths]


@pytest.fixture(autouse=True)
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefOptCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(PrefOptCLI, "_run_subcommand", lambda self, subcommand: None)


@pytest.mark.parametrize("path", RUNS, ids=names(RUNS))
def test_a_configuration_parses(path: Path) -> None:
    config = main(["fit", "--config", str(path)]).config.fit
    assert config.model.class_path.startswith(("pl_prefopt.modules.", "pl_prefopt.demo."))
    assert config.data.class_path.startswith("pl_prefopt.")


@pytest.mark.parametrize("path", OVERLAYS, ids=names(OVERLAYS))
def test_an_overlay_adds_to_a_configuration(path: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text(yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": f"{__name__}.Kept"}]}}))
    alone = main(["fit", "--config", str(BASE), "--config", str(extra)]).config.fit.trainer
    both = main(["fit", "--config", str(BASE), "--config", str(extra), "--config", str(path)]).config.fit.trainer
    before, after = ([c.class_path for c in t.callbacks] for t in (alone, both))
    assert after[: len(before)] == before
    assert any(name.endswith(".Kept") for name in after)
    assert both != alone, "the overlay changes nothing"


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_a_configuration_says_how_it_is_used(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"--config {path.relative_to(ROOT)}" in text, "the launch line stands in the header"


@pytest.mark.parametrize("path", OVERLAYS, ids=names(OVERLAYS))
def test_an_overlay_touches_the_trainer_only(path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(content) == {"trainer"}
    assert "callbacks" not in content["trainer"], "callbacks: would delete the base's; use callbacks+:"
