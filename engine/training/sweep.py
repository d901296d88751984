"""A sweep over the training set with the current encoders, for what is measured between two steps.

Shape suffixes: B local batch, G global batch, P pairs to add, D embedding. A rank is a pair's place in the
order of the sweep, which is random and begins with the anchors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.data import order
from engine.data.loader import Request, load
from engine.method import Features
from engine.training.trainer import Trainer

SWEEP_EPOCH = 1 << 40
"""A number no epoch reaches: the sweep has an order of its own."""


class Part(NamedTuple):
    """A global batch of a sweep."""

    features: Features
    """This process's rows."""
    image_PD: Tensor
    """Embeddings of the pairs of all processes that were in no part before."""
    text_PD: Tensor
    rank_P: Tensor
    """Their ranks."""


def encode_all(
    trainer: Trainer, epoch: int, num_anchor_parts: int, before_batch: Callable[[], None]
) -> Generator[Part, None, None]:
    """Yield all pairs of the data set in a random order, a global batch at a time.

    Embeddings are those of training: train-mode features of whole batches, which leave no trace in batch norm.

    Args:
        trainer: The run.
        epoch: For which pictures are augmented.
        num_anchor_parts: Parts at the beginning that have the pairs beyond the batch, if the method wants any.
        before_batch: Called before a batch is encoded; what it raises ends the sweep.
    """
    ours, num_pairs, batch_size = trainer.collectives, trainer.dataset.index.pairs, trainer.spec.global_batch_size
    spec, shares = trainer.spec, trainer.extra_shares

    def requests() -> Iterator[Request]:
        for number, positions_G in enumerate(_batches(trainer.dataset.index.shard_sizes, spec.seed, batch_size)):
            extra = None
            if shares is not None and number < num_anchor_parts:
                # Those of steps that the run does not have.
                step = spec.num_steps + number
                positions = order.extra_positions(num_pairs, shares[ours.rank], seed=spec.seed, step=step)
                extra = Request(epoch, positions)
            yield Request(epoch, order.share(positions_G, ours.rank, ours.world_size), extra)

    first = 0
    with contextlib.closing(load(trainer.dataset, requests(), trainer.execution.num_workers)) as batches:
        for batch in batches:
            before_batch()
            batch = batch.to(trainer.device)
            image_BD, text_BD = trainer.encoder.encode_detached(batch.image_BCHW, batch.tokens_BT)
            extra = None if batch.extra is None else trainer.encode_extra(batch.extra)
            features = Features(image_BD, text_BD, batch.index_B, extra)
            # The last batch is filled up at its beginning, with pairs that were there already.
            fresh = min(batch_size, num_pairs - first)
            rank_P = torch.arange(first, first + fresh, device=trainer.device)
            yield Part(features, ours.gather(image_BD)[-fresh:], ours.gather(text_BD)[-fresh:], rank_P)
            first += fresh


def _batches(shard_sizes: Sequence[int], seed: int, global_batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield all pairs in global batches, anchors first; the last batch is filled up with the pairs before it."""
    last = rest = np.empty(0, dtype=np.int64)
    for window in order.epoch_order(shard_sizes, seed=seed, epoch=SWEEP_EPOCH):
        rest = np.concatenate([rest, window])
        while len(rest) >= global_batch_size:
            last, rest = rest[:global_batch_size], rest[global_batch_size:]
            yield last
    if len(rest):
        yield np.concatenate([last, rest])[-global_batch_size:]
