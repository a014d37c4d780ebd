"""Rows of the shapes world as files: label rates, wrong captions, flips, determinism, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_prefopt.demo.image.data import Row, ShapesDataModule, caption_rows, pair_rows
from pl_prefopt.demo.image.world import ShapesJudge, ShapesWorld, parse
from pl_prefopt.judges.base import judged

WORLD = ShapesWorld()


def right(row: Row) -> tuple[int, int]:
    """Right attributes of both images, read from the pixels."""
    wanted = parse(row[0])
    found = WORLD.read(torch.stack(row[1:]))
    first, second = (sum(a == b for a, b in zip(wanted, (r.colour, r.shape), strict=True)) for r in found)
    return first, second


def test_the_better_image_has_more_right_attributes() -> None:
    rows = list(pair_rows(WORLD, 200, 0.0, np.random.default_rng(0)))
    counts = np.array([right(r) for r in rows])
    assert (counts[:, 0] > counts[:, 1]).all()
    assert set(map(tuple, counts.tolist())) == {(1, 0), (2, 0), (2, 1)}
    assert len({r[0] for r in rows}) == 12
    scores = [judged(ShapesJudge(), [r[0]] * 2, list(r[1:])) for r in rows]
    assert all(a > b for a, b in scores)


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flips_turn_their_share_of_labels(flip: float) -> None:
    counts = np.array([right(r) for r in pair_rows(WORLD, 200, flip, np.random.default_rng(1))])
    turned = np.mean(counts[:, 0] < counts[:, 1])
    assert turned == pytest.approx(flip, abs=4 * np.sqrt(flip * (1 - flip) / 200))


@pytest.mark.parametrize("wrong", [0.0, 0.4, 1.0])
def test_captions_are_wrong_with_their_probability(wrong: float) -> None:
    rows = list(caption_rows(WORLD, 200, wrong, np.random.default_rng(2)))
    share = np.mean([right(r)[0] < 2 for r in rows])
    assert share == pytest.approx(wrong, abs=4 * np.sqrt(wrong * (1 - wrong) / 200))
    assert all(not torch.equal(r[1], r[2]) for r in rows)


def files(module: ShapesDataModule) -> dict[str, bytes]:
    return {str(p.relative_to(module.folder)): p.read_bytes() for p in sorted(module.folder.rglob("*")) if p.is_file()}


def test_files_depend_on_setting_and_seed_only(tmp_path: Path) -> None:
    made = []
    cases: list[tuple[str, dict[str, Any]]] = [("a", {}), ("b", {})]
    cases += [("a", {"seed": 1}), ("a", {"flip": 0.5}), ("a", {"labels": False})]
    for place, options in cases:
        module = ShapesDataModule(rows=6, eval_rows=2, cache_dir=str(tmp_path / place), **options)
        module.prepare_data()
        made.append(module)
    assert files(made[0]) == files(made[1])
    assert len({m.folder for m in made}) == 5
    assert len(files(made[0])) == 2 + 2 * (6 + 2)


def test_batches_are_the_images(tmp_path: Path) -> None:
    module = ShapesDataModule(rows=8, eval_rows=2, batch_size=4, cache_dir=str(tmp_path))
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["pixels"].shape == (4, 2, 3, 32, 32)
    for caption, (first, second) in zip(batch["caption"], batch["pixels"] / 2 + 0.5, strict=True):
        better, worse = right((caption, first, second))
        assert better > worse


@pytest.mark.parametrize(
    ("options", "message"),
    [({"wrong": 1.5}, r"wrong must lie in \[0, 1\], got 1.5"), ({"flip": -1.0}, "flip"), ({"rows": 0}, "rows")],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesDataModule(**options)
