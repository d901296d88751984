"""CLIP with a memory queue: the embeddings of the last batches are further negatives of the contrastive loss.

Papers: MoCo, arXiv:1911.05722 (a queue of past embeddings as negatives); cross-batch memory, arXiv:1912.06798 (the same
without a second, slowly moving encoder, as here). With Q_i the queue without pair i's own past, d_i = x_i . y_i and
s = 1 / temperature, image i's part is (a text's the reverse)

    log[ 1 + sum_{j != i} exp(s (x_i . y_j - d_i)) + sum_{k in Q_i} exp(s (x_i . q_k - d_i)) ]

and the loss is the mean over images and texts. The queue has no gradient. After a step's sums, its batch replaces the
oldest one. At step 0 the queue is empty, and the loss OpenCLIP's.

Shape suffixes: B local batch, G global batch, C chunk of anchors, K batches in the queue, O batch and queue (G + K G),
D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.contrastive import DEFAULT_CHUNK_ROWS
from engine.method import (
    Features,
    LossOutput,
    MethodConfig,
    MethodEnv,
    Progress,
    TemperatureConfig,
    TemperatureMethod,
)

EMPTY = -1


class MemoryQueue(TemperatureMethod):
    """InfoNCE over the global batch and the embeddings of the batches before it."""

    class Config(MethodConfig):
        """Options. The papers train other models on other data: `queue_batches` is a choice of ours."""

        temperature: TemperatureConfig = TemperatureConfig()
        queue_batches: int = Field(default=8, ge=1)
        """K: global batches that the queue holds."""
        chunk_rows: int = Field(default=DEFAULT_CHUNK_ROWS, ge=1)
        """Anchors whose similarities to the batch and the queue are held at once."""

    queue_2KGD: Tensor
    index_KG: Tensor

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        shape = (config.queue_batches, env.global_batch_size)
        self.register_buffer("queue_2KGD", torch.zeros(2, *shape, env.embed_dim))
        self.register_buffer("index_KG", torch.full(shape, EMPTY))

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Return InfoNCE of the local rows against batch and queue, and put the batch into the queue."""
        scale, ours = self.temperature.scale, self.env.collectives
        image_GD, text_GD = ours.gather_sides(features.image_BD, features.text_BD)
        index_G = ours.gather(features.index_B)
        log_sum_2B = self._log_sums(features, image_GD, text_GD, index_G, scale)
        total = F.softplus(log_sum_2B).mean()
        slot = progress.step % self.config.queue_batches
        self.queue_2KGD[:, slot] = torch.stack((image_GD, text_GD)).detach().to(self.queue_2KGD)
        self.index_KG[slot] = index_G
        metrics = {
            "loss/contrastive": total.detach(),
            "temperature/value": 1 / scale.detach(),
            "queue/filled_share": (self.index_KG != EMPTY).float().mean(),
        }
        return LossOutput(total, metrics)

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor:
        """See `Method.exact_loss`: InfoNCE over all pairs, which leave nothing for the queue."""
        log_g_2P = log_g(self.temperature.scale)
        return F.softplus(log_g_2P + math.log(log_g_2P.shape[1] - 1)).mean()

    @torch.no_grad()
    def log_normalizers(self, features: Features, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the mean over the other pairs of the batch and the queue, as the loss uses it."""
        ours = self.env.collectives
        image_GD, text_GD = ours.gather_sides(features.image_BD, features.text_BD)
        log_sum_2B = self._log_sums(features, image_GD, text_GD, ours.gather(features.index_B), self.temperature.scale)
        past_BK = self._is_negative(features.index_B)
        log_mean_2B = log_sum_2B - (past_BK.sum(dim=1) + len(image_GD) - 1).log()
        return log_mean_2B[0], log_mean_2B[1]

    def _is_negative(self, index_C: Tensor) -> Tensor:
        """Mark the entries of the queue that are other pairs than an anchor's own, (C, K G)."""
        past = self.index_KG.flatten()
        return (past != EMPTY) & (past != index_C[:, None])

    def _log_sums(
        self, features: Features, image_GD: Tensor, text_GD: Tensor, index_G: Tensor, scale: Tensor
    ) -> Tensor:
        """Return the log of the local anchors' sums over batch and queue, (2, B)."""
        ours = self.env.collectives
        # Copies: the queue moves on before the backward pass computes the chunks again.
        image_OD, text_OD = (
            torch.cat((side_GD, past_KGD.flatten(0, 1).to(side_GD)))
            for side_GD, past_KGD in zip((image_GD, text_GD), self.queue_2KGD, strict=True)
        )
        num_local, size = len(features.index_B), self.config.chunk_rows
        positive_B = (features.image_BD * features.text_BD).sum(dim=1)
        chunks = []
        for rows in (slice(i, min(i + size, num_local)) for i in range(0, num_local, size)):
            own_C = torch.arange(rows.start, rows.stop, device=index_G.device) + ours.rank * num_local
            in_batch_CG = own_C[:, None] != torch.arange(len(index_G), device=index_G.device)
            mask_CO = torch.cat((in_batch_CG, self._is_negative(features.index_B[rows])), dim=1)
            sides = ((features.image_BD, text_OD), (features.text_BD, image_OD))
            args = [(anchor_BD[rows], other_OD, positive_B[rows], scale, mask_CO) for anchor_BD, other_OD in sides]
            chunks.append(
                torch.stack([checkpoint(_log_sum, *a, use_reentrant=False, preserve_rng_state=False) for a in args])
            )
        return torch.cat(chunks, dim=1)


def _log_sum(anchor_CD: Tensor, other_OD: Tensor, positive_C: Tensor, scale: Tensor, mask_CO: Tensor) -> Tensor:
    logits_CO = scale * (anchor_CD @ other_OD.T - positive_C[:, None])
    return logits_CO.masked_fill(~mask_CO, -math.inf).logsumexp(dim=1)
