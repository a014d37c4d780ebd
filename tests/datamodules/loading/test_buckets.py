from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule, Share
from pl_prefopt.datamodules.loading.buckets import BucketBatches, BucketEvalBatches
from tests.datamodules.sample_files import copy_of
from tests.datamodules.sample_images import image_folder, noise

BUCKETS = np.array([0] * 11 + [1] * 5 + [2] * 7)


def test_batches_are_of_one_bucket_and_epochs_differ() -> None:
    plan = BucketBatches(BUCKETS, 2, Share(), seed=1)
    for epoch in range(3):
        batches = plan.batches(epoch)
        assert len(batches) == len(plan) == 5 + 2 + 3
        assert all(len(b) == 2 and len(set(BUCKETS[b])) == 1 for b in batches)
        rows = np.concatenate(batches)
        assert len(set(rows)) == len(rows) == 23 - plan.left_out
    assert plan.fingerprint(0) != plan.fingerprint(1)
    assert plan.fingerprint(0) == BucketBatches(BUCKETS, 2, Share(), seed=1).fingerprint(0)
    rest = {r for e in range(9) for r in set(range(23)) - set(np.concatenate(plan.batches(e)).tolist())}
    assert len(rest) > 5


def test_ranks_and_accumulation_share_the_batches() -> None:
    one = BucketBatches(BUCKETS, 2, Share(0, 2), accumulate=2)
    two = BucketBatches(BUCKETS, 2, Share(1, 2), accumulate=2)
    assert len(one) == len(two) == len(one.batches(0)) == len(two.batches(0)) == 4
    rows = np.concatenate([*one.batches(0), *two.batches(0)])
    assert len(set(rows)) == 16
    assert one.left_out == 23 - 16
    assert one.fingerprint(0) == two.fingerprint(0)


def test_small_batches_may_be_kept() -> None:
    plan = BucketBatches(BUCKETS, 4, Share(), drop_last=False, shuffle=False)
    assert Counter(np.concatenate(plan.batches(0)).tolist()) == Counter(range(23))
    assert len(plan) == len(plan.batches(0)) == 3 + 2 + 2
    assert plan.left_out == 0


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_sees_every_pair_once(world: int) -> None:
    plans = [BucketEvalBatches(BUCKETS, 4, Share(r, world)) for r in range(world)]
    batches = [p.batches() for p in plans]
    assert {len(b) for b in batches} == {len(plans[0])}
    rows = np.concatenate([b for part in batches for b in part])
    assert sorted(rows.tolist()) == list(range(23))
    assert all(len(set(BUCKETS[b])) == 1 for part in batches for b in part)
    assert len({p.fingerprint() for p in plans}) == 1


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must fill one optimizer step .*, got buckets of \[11, 5, 7\] pairs"):
        BucketBatches(BUCKETS, 12, Share())
    with pytest.raises(ValueError, match="drop_last must be True on several devices, got False with 2 devices"):
        BucketBatches(BUCKETS, 2, Share(0, 2), drop_last=False)
    with pytest.raises(ValueError, match=r"val must hold enough pairs per bucket for 2 devices .*, got 3 pairs"):
        BucketEvalBatches(np.array([0, 1, 2]), 4, Share(0, 2), name="val")


def test_a_folder_of_two_aspect_ratios(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", 6)
    for i in (1, 4):
        for k, name in enumerate(("good", "bad")):
            noise(60 + 10 * k + i, 40, 20).save(path.parent / f"{name}{i}.png")
    buckets = [[12, 16], [16, 8]]
    data = ImagePreferenceDataModule(
        str(path),
        val=copy_of(path),
        geometry=Geometry(buckets=buckets),
        batch_size=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    assert data.stats("train")["buckets"] == {"12x16": 4, "16x8": 2}
    shapes = sorted((tuple(b["pixels"].shape[-2:]), len(b["index"])) for b in data.train_dataloader())
    assert shapes == [((12, 16), 2), ((12, 16), 2), ((16, 8), 2)]
    seen = [i for b in iter(data.val_dataloader()) for i in b["index"].tolist()]
    assert sorted(seen) == list(range(6))
