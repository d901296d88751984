import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.order import WINDOW_SHARDS, epoch_batches, epoch_order, extra_positions, extra_shares

SIZES = [5, 8, 3, 9] * 10


def batches(**changes):
    settings = {"seed": 0, "epoch": 0, "global_batch_size": 16} | changes
    return list(epoch_batches(SIZES, **settings))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_is_another_order(change):
    assert not np.array_equal(np.concatenate(batches()), np.concatenate(batches(**change)))


def test_the_order_is_pinned_for_ever():
    # A changed order would make old and new runs of one id differ.
    first = next(epoch_order([10, 10], seed=3, epoch=2))
    assert first[:8].tolist() == [13, 3, 10, 2, 15, 1, 12, 6]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60).filter(lambda sizes: sum(sizes) >= 7),
    st.integers(1, 7),
    st.integers(0, 300),
)
@settings(max_examples=50, deadline=None)
def test_starting_anywhere_gives_the_rest_of_the_epoch(sizes, batch, first):
    order = np.concatenate(list(epoch_order(sizes, seed=1, epoch=2)))
    rest = list(epoch_batches(sizes, seed=1, epoch=2, global_batch_size=batch, first_batch=first))
    assert len(rest) == max(0, len(order) // batch - first)
    for number, positions in enumerate(rest, start=first):
        np.testing.assert_array_equal(positions, order[number * batch : (number + 1) * batch])


def test_a_start_late_in_a_billion_samples_draws_one_window():
    sizes = [10_000] * 100_000
    tracemalloc.start()
    batch = next(epoch_batches(sizes, seed=0, epoch=0, global_batch_size=4096, first_batch=240_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set((batch // 10_000).tolist())) <= 2 * WINDOW_SHARDS
    # All positions would take 8 GB.
    assert peak < 50 * 2**20


def test_extra_positions_are_uniform_and_of_their_own_for_every_step_and_seed():
    draws = np.stack(
        [extra_positions(10, np.arange(500), seed=seed, step=step) for seed in (0, 1) for step in range(10)]
    )
    assert draws.dtype == np.int64
    # 10,000 draws of ten positions: chi-square with nine degrees of freedom, below 27.9 in 999 of 1,000 cases.
    counts = np.bincount(draws.ravel(), minlength=10)
    assert len(counts) == 10
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9
    assert len({tuple(row) for row in draws}) == 20


def test_extra_positions_are_pinned_for_ever():
    assert extra_positions(1_000_000, np.arange(4), seed=3, step=7).tolist() == [769601, 496001, 14875, 851120]
    # More of them begin with the same.
    assert extra_positions(1_000_000, np.arange(9), seed=3, step=7)[:4].tolist() == [769601, 496001, 14875, 851120]


def seen_together(shares, num_parts, neighbours):
    """What batch norm sees at once: the same part of the rows of neighbouring processes."""
    rows = shares.reshape(len(shares) // neighbours, neighbours, num_parts, -1).swapaxes(1, 2)
    return {tuple(part.flatten()) for part in rows.reshape(-1, rows.shape[2] * rows.shape[3])}


@pytest.mark.parametrize("size", [16, 32, 96, 256, 512])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_batch_norm_sees_the_same_extra_pairs_together_on_any_number_of_processes(size, groups, world_size):
    batch, part = 256, min(size, 256 // groups)
    training = {"global_batch_size": batch, "batch_norm_groups": groups}
    if size % part:
        with pytest.raises(ValueError, match="of which these are no multiple") if world_size > 1 else nullcontext():
            extra_shares(size, world_size, **training)
        return
    shares = extra_shares(size, world_size, **training)
    neighbours = max(1, world_size // groups)
    num_parts = shares.shape[1] * neighbours // part
    assert seen_together(shares, num_parts, neighbours) == {tuple(range(i, i + part)) for i in range(0, size, part)}


def test_extra_pairs_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="num_extra_pairs = 7 cannot be divided among 2 processes"):
        extra_shares(7, 2, global_batch_size=16, batch_norm_groups=None)
