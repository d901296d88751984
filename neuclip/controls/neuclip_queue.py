"""NeuCLIP's loss with the embeddings of the last batches, the current one among them, in place of the network.

So alpha, and only alpha, is that of a batch of M pairs; it errs by the variance of a mean over them, and by what
encoders have moved since. In a batch of distinct pairs a weight exp(log gamma_i - alpha_i) is at most |Q_i| / (G - 1).
A queue of past embeddings as negatives of the loss, where they also enter the gradient, is MoCo's, arXiv:1911.05722,
and cross-batch memory's, arXiv:1912.06798; see `baselines.memory_queue`.

Shape suffixes: 2 sides (image anchors, text anchors), K batches in the queue, G global batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.method import Features, MethodEnv
from neuclip.method import Batch, Update
from neuclip.normalizer import Anchors
from neuclip.others import EMPTY, OtherPairs


class NeuCLIPQueue(OtherPairs):
    """UNIFIED with a queue as normalizer. Its state: the temperature and the queue."""

    class Config(OtherPairs.Config):
        """Options."""

        num_prototypes: int = Field(default=4096, ge=1)
        """M, embeddings in the queue, rounded up to whole batches; named as what they stand in for."""
        architecture: Literal["queue"] = "queue"

    other_2KGD: Tensor
    index_KG: Tensor

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env)
        shape = (math.ceil(config.num_prototypes / env.global_batch_size), env.global_batch_size)
        self.register_buffer("other_2KGD", torch.zeros(2, *shape, env.embed_dim))
        self.register_buffer("index_KG", torch.full(shape, EMPTY))

    @property
    def chunk_rows(self) -> int:
        """As many similarities are held as those of `chunk_rows` anchors to one batch."""
        return max(1, self.config.chunk_rows // len(self.index_KG))

    @torch.no_grad()
    def _keep(self, embedding_2GD: Tensor, index_G: Tensor, step: int) -> None:
        """Let the batch take the place of the oldest one."""
        slot = step % len(self.index_KG)
        self.other_2KGD[:, slot] = embedding_2GD.flip(0).to(self.other_2KGD)
        self.index_KG[slot] = index_G

    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """See `Unified.update`."""
        self._keep(anchors.embedding_2GD, self.env.collectives.gather(batch.features.index_B), step)
        alpha_2B = self._alpha(batch)
        return Update(alpha_2B, alpha_2B)

    def is_ready(self, index_B: Tensor) -> Tensor:
        """Return whether there has been a batch, scalar."""
        return (self.index_KG != EMPTY).any()

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        return self.other_2KGD.flatten(1, 2), self.index_KG.flatten()
