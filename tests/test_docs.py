"""Every Python block of the front page and of the documents runs, in order, in a folder with a small data file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs import write_pairs
from tests.tiny import QWEN2, tiny_lm

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
HUB_NAME = "Qwen/Qwen2.5-0.5B"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and tokenizer that stand in for the hub name of the examples."""
    from pl_prefopt.datamodules import TrainedTokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = TrainedTokenizer(vocab_size=60, kind="word")(
        lambda: iter(["ash bay cut dew elm fog gum hay ice jam"]), "docs", folder / "cache"
    )
    tiny_lm(config={**QWEN2, "num_attention_heads": 2})().save_pretrained(folder / "hub")  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(folder / "hub")
    return folder / "hub"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_examples_run(page: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "pairs.jsonl", 32)
    names: dict[str, object] = {"__name__": "__main__"}
    for code in blocks(page):
        exec(compile(code.replace(HUB_NAME, str(model_folder)), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [t.split("#")[0] for t in re.findall(r"\]\((?!https?:)([^)#][^)]*)\)", text)]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_configs_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"configs/[\w/.\-]+\.yaml", page.read_text(encoding="utf-8"))
    assert [n for n in named if not (ROOT / n).exists()] == []
