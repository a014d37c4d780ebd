"""Settings of all tests: one thread, no network, fixed seeds, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test from one random state, and keep caches out of the user's folders."""
    torch.manual_seed(0)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is absent: {os.path.relpath(SHARED, Path.cwd())} (it is not part of the project)")
    return SHARED
