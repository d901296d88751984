"""The order in which training visits the data: a pure function of (seed, epoch), never of processes or workers.

Shards are permuted, then groups of `WINDOW_SHARDS` shards are shuffled together, so that reads stay nearly
sequential on a large set. Random keys come from hashing positions, which no library version can change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.schema.run import refuse_uneven

WINDOW_SHARDS = 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser. Source: Steele, Lea, Flood, OOPSLA 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_keys(positions: NDArray[np.int64], *, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """Return one uniform 64-bit key per position, a function of (seed, epoch, purpose, position) only."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, dtype=np.uint64)
        for part in (seed, epoch, purpose):
            state = _mix(state + _GOLDEN + np.uint64(part))
        return _mix(state + _GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))


_SHARD_KEYS, _SAMPLE_KEYS = 0, 1
AUGMENTATION_KEYS, CAPTION_KEYS, SUBSET_KEYS = 2, 3, 4
_EXTRA_KEYS = 5
TIE_KEYS = 6


def epoch_order(
    shard_sizes: Sequence[int], *, seed: int, epoch: int, first_sample: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield the data set positions of one epoch, window by window.

    Only one window is ever held, and windows before `first_sample` are not drawn: a start in the middle of an epoch
    of a billion samples costs no more than one at its beginning.

    Args:
        shard_sizes: Pairs in each shard; a shard's positions follow those of the shard before.
        seed: The run's seed.
        epoch: Epoch, from 0.
        first_sample: Samples of the epoch's order to leave out at its beginning.

    Yields:
        Positions of one window, int64; all windows together are a permutation of the data set.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = np.arange(len(sizes), dtype=np.int64)
    shards = shards[np.argsort(hash_keys(shards, seed=seed, epoch=epoch, purpose=_SHARD_KEYS), kind="stable")]
    ends = np.cumsum(sizes[shards])
    for first in range(0, len(shards), WINDOW_SHARDS):
        window = shards[first : first + WINDOW_SHARDS]
        end = int(ends[first + len(window) - 1])
        if end <= first_sample:
            continue
        positions = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in window])
        keys = hash_keys(positions, seed=seed, epoch=epoch, purpose=_SAMPLE_KEYS)
        begin = end - len(positions)
        yield positions[np.argsort(keys, kind="stable")][max(0, first_sample - begin) :]


def epoch_batches(
    shard_sizes: Sequence[int], *, seed: int, epoch: int, global_batch_size: int, first_batch: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield an epoch's global batches of positions from number `first_batch` on; an incomplete last one is dropped."""
    rest = np.empty(0, dtype=np.int64)
    for window in epoch_order(shard_sizes, seed=seed, epoch=epoch, first_sample=first_batch * global_batch_size):
        rest = np.concatenate([rest, window])
        whole = len(rest) - len(rest) % global_batch_size
        yield from rest[:whole].reshape(-1, global_batch_size)
        rest = rest[whole:]


def share(positions: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the positions that one of several processes takes."""
    size = len(positions) // world_size
    return positions[rank * size : (rank + 1) * size]


def extra_positions(num_pairs: int, numbers: NDArray[np.int64], *, seed: int, step: int) -> NDArray[np.int64]:
    """Draw the positions of a step's extra pairs with these numbers: each uniform over the set, all independent."""
    keys = hash_keys(numbers, seed=seed, epoch=step, purpose=_EXTRA_KEYS)
    return (keys % np.uint64(num_pairs)).astype(np.int64)


def extra_shares(
    size: int, world_size: int, *, global_batch_size: int, batch_norm_groups: int | None
) -> NDArray[np.int64]:
    """Return which of a step's extra pairs each process encodes.

    Batch norm sees the same pairs together as in one process: neighbours that share a part of the global batch share
    one of as many extra pairs. Where there are fewer such parts than processes, some are encoded more than once.

    Args:
        size: Number of extra pairs.
        world_size: Number of processes.
        global_batch_size: Pairs of a batch.
        batch_norm_groups: Parts of the batch that batch norm sees; None for a model without batch norm.

    Returns:
        Numbers of pairs by process, (world_size, n) int64.

    Raises:
        ValueError: If the pairs cannot be shared.
    """
    refuse_uneven(world_size, num_extra_pairs=size)
    numbers = np.arange(size)
    if batch_norm_groups is None or world_size == 1 or not size:
        return numbers.reshape(world_size, size // world_size)
    part = min(size, global_batch_size // batch_norm_groups)
    if size % part:
        raise ValueError(
            f"num_extra_pairs = {size}: batch norm sees {part} pairs together, of which these are no multiple, so "
            f"{world_size} processes would see other ones than a single process does: use a multiple, or one process"
        )
    num_parts, neighbours = size // part, max(1, world_size // batch_norm_groups)
    parties = world_size // neighbours
    each = math.ceil(num_parts / parties)
    taken = np.arange(parties * each).reshape(parties, each) % num_parts
    shares: NDArray[np.int64] = numbers.reshape(num_parts, neighbours, part // neighbours)[taken].swapaxes(1, 2)
    return shares.reshape(world_size, each * part // neighbours)
