from __future__ import annotations

import numpy as np
import pytest

from pl_prefopt.datamodules import EvalBatches, Share, TrainBatches

LENGTHS = np.random.default_rng(3).integers(5, 200, 103)


@pytest.mark.parametrize("buckets", [True, False])
def test_two_ranks_see_the_rows_of_one(buckets: bool) -> None:
    one = TrainBatches(LENGTHS, 8, length_buckets=buckets).batches(2)
    two = [TrainBatches(LENGTHS, 4, Share(r, 2), length_buckets=buckets).batches(2) for r in (0, 1)]
    assert len(one) == len(two[0]) == len(two[1]) == 12
    for whole, a, b in zip(one, *two, strict=True):
        assert not set(a) & set(b)
        assert set(whole) == set(a) | set(b)


@pytest.mark.parametrize("buckets", [True, False])
def test_accumulated_micro_batches_make_the_same_step(buckets: bool) -> None:
    one = TrainBatches(LENGTHS, 8, length_buckets=buckets).batches(0)
    eight = TrainBatches(LENGTHS, 1, accumulate=8, length_buckets=buckets).batches(0)
    assert len(eight) == 8 * len(one)
    for step, whole in enumerate(one):
        assert set(np.concatenate(eight[8 * step : 8 * step + 8])) == set(whole)


def test_epochs_differ_and_come_back_from_the_seed() -> None:
    plan = TrainBatches(LENGTHS, 4, seed=1)
    first, second = np.concatenate(plan.batches(0)), np.concatenate(plan.batches(1))
    assert len(set(first)) == len(first) == 100
    assert not np.array_equal(first, second)
    assert np.array_equal(first, np.concatenate(TrainBatches(LENGTHS, 4, seed=1).batches(0)))
    assert not np.array_equal(first, np.concatenate(TrainBatches(LENGTHS, 4, seed=2).batches(0)))


def test_epoch_is_a_multiple_of_the_accumulation_window() -> None:
    plan = TrainBatches(LENGTHS, 4, accumulate=3)
    assert len(plan) == len(plan.batches(0)) == 24
    assert plan.left_out == 103 - 96
    assert (
        len(TrainBatches(LENGTHS, 4, drop_last=False))
        == len(TrainBatches(LENGTHS, 4, drop_last=False).batches(0))
        == 26
    )


def test_rows_that_rest_change_with_the_epoch() -> None:
    plan = TrainBatches(LENGTHS, 50)
    assert set(plan.order(0)) != set(plan.order(1))


def test_buckets_save_padding_and_keep_every_row() -> None:
    def padded(plan: TrainBatches) -> int:
        return sum(len(b) * LENGTHS[b].max() for b in plan.batches(0))

    plain, bucketed = TrainBatches(LENGTHS, 4, length_buckets=False), TrainBatches(LENGTHS, 4)
    assert padded(bucketed) < 0.75 * padded(plain)
    assert set(bucketed.order(0)) == set(plain.order(0))


def test_order_of_bucketed_batches_is_random() -> None:
    longest = [LENGTHS[b].max() for b in TrainBatches(LENGTHS, 4).batches(0)]
    assert longest != sorted(longest)


@pytest.mark.parametrize("rows", [3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 25, 455])
@pytest.mark.parametrize(("size", "world"), [(1, 1), (4, 1), (1, 2), (1, 3), (2, 3), (4, 2), (5, 3)])
@pytest.mark.parametrize("buckets", [True, False])
def test_evaluation_sees_each_row_once(rows: int, size: int, world: int, buckets: bool) -> None:
    lengths = np.arange(rows) % 7
    ranks = [EvalBatches(lengths, size, Share(r, world), length_buckets=buckets) for r in range(world)]
    batches = [r.batches() for r in ranks]
    assert sorted(np.concatenate([b for of_rank in batches for b in of_rank])) == list(range(rows))
    assert len({len(b) for b in batches}) == 1
    assert len(batches[0]) == len(ranks[0])
    sizes = [len(b) for of_rank in batches for b in of_rank]
    assert min(sizes) >= 1
    assert max(sizes) <= max(size, 2)


def test_one_process_evaluates_full_batches_in_the_order_of_the_file() -> None:
    assert [b.tolist() for b in EvalBatches(np.ones(9), 4).batches()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"train must hold at least one optimizer step of 16 rows .*, got 10"):
        TrainBatches(np.ones(10), 4, accumulate=4)
    with pytest.raises(ValueError, match=r"drop_last must be True on several devices, got False with 2 devices"):
        TrainBatches(np.ones(10), 4, Share(0, 2), drop_last=False)
    with pytest.raises(ValueError, match=r"val must hold at least one row per device, got 2 rows for 3 devices"):
        EvalBatches(np.ones(2), 4, Share(0, 3), name="val")
