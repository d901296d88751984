"""What stands in place of NeuCLIP's network: log-normalizers of which nothing is learned.

`Average` takes a mean over time; `Queue`, `Fresh` and `Batch` take one over other pairs. All keep their state in
buffers: the engine's optimiser never sees it.
Shape suffixes: 2 sides (image anchors, text anchors), B local anchors, G global batch, C chunk of anchors,
M embeddings of other pairs, N pairs of the data set or batches in the queue, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.contrastive import add_eps, log_mix
from engine.distributed import Collectives
from engine.method import Features
from neuclip.normalizer import cosines_above, predict_in_chunks, slices

EMPTY = -1
"""Position of what is not in the queue yet."""


@dataclass(frozen=True)
class Observed:
    """The global batch of a step, without gradient, as `Stored` sees it."""

    embedding_2GD: Tensor
    """Unit embeddings: images, then texts."""
    index_G: Tensor
    """Data set positions of the pairs, 0 or more."""
    log_gamma_2G: Tensor
    """log(eps + g) as the batch estimates it."""
    step: int


class Stored(nn.Module):
    """Log-normalizers from what earlier steps left, or from other pairs: what stands in place of a network."""

    def observe(self, batch: Observed) -> None:
        """See every step's batch, before that step's prediction."""

    def is_ready(self, index_B: Tensor) -> Tensor:
        """Return whether there is a prediction for pairs at these positions, (B,) or scalar."""
        raise NotImplementedError

    def forward(self, features: Features, logit_scale: Tensor) -> Tensor:
        """Return alpha, (2, B).

        Args:
            features: The anchors, with their data set positions.
            logit_scale: 1 / temperature, scalar.
        """
        raise NotImplementedError


class Average(Stored):
    """A moving average of each pair's own estimates, without prediction across pairs.

        u_i <- (1 - gamma) u_i + gamma (eps + g_i)   whenever pair i is in a batch, and u_i <- eps + g_i the first time

    alpha_i = log u_i. State grows with the data set: 2 N numbers.

    Args:
        dataset_size: N.
        gamma: Weight of the new estimate, in (0, 1].

    Source: FastCLIP, arXiv:2407.01445. Differs: gamma is constant.
    """

    log_u_2N: Tensor
    visited_N: Tensor

    def __init__(self, dataset_size: int, *, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("log_u_2N", torch.zeros(2, dataset_size))
        self.register_buffer("visited_N", torch.zeros(dataset_size, dtype=torch.bool))

    @torch.no_grad()
    def observe(self, batch: Observed) -> None:
        """Mix the batch's estimates in."""
        # Where a pair comes twice, its last row is written at both places, so that no order of writing matters.
        sorted_G, order_G = batch.index_G.sort(stable=True)
        last_G = order_G[torch.searchsorted(sorted_G, batch.index_G, right=True) - 1]
        new_2G = batch.log_gamma_2G[:, last_G].to(self.log_u_2N)
        mixed_2G = log_mix(self.log_u_2N[:, batch.index_G], new_2G, self.gamma)
        self.log_u_2N[:, batch.index_G] = torch.where(self.visited_N[batch.index_G], mixed_2G, new_2G)
        self.visited_N[batch.index_G] = True

    def is_ready(self, index_B: Tensor) -> Tensor:
        """See `Stored.is_ready`."""
        return self.visited_N[index_B]

    def forward(self, features: Features, logit_scale: Tensor) -> Tensor:
        """See `Stored.forward`; without gradient."""
        return self.log_u_2N[:, features.index_B]


class OtherPairs(Stored):
    """The embeddings of M other pairs themselves in place of a network. Subclasses say which pairs.

        alpha_i = log( eps + mean over k in Q_i of exp( (e_i . y_k - s_i) / tau ) )

    with y_k the other modality's embeddings and Q_i all of them but those of pair i itself: its own would add about
    1 / M, often more than all others together.

    Every process holds all of them, and predicts for its own anchors alone: no collectives.

    Args:
        eps: The constant inside the logarithm.
        chunk_rows: Anchors whose similarities to all of them are held at once.
    """

    def __init__(self, *, eps: float, chunk_rows: int) -> None:
        super().__init__()
        self.eps, self.chunk_rows = eps, chunk_rows

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the other modality's embeddings, (2, M, D), and their pairs' positions, (M,); `EMPTY` is no pair."""
        raise NotImplementedError

    def forward(self, features: Features, logit_scale: Tensor) -> Tensor:
        """See `Stored.forward`; differentiable in the anchors and in logit_scale."""
        other_2MD, index_M = self.others(features)
        embedding_2BD = torch.stack((features.image_BD, features.text_BD))
        positive_B = (features.image_BD * features.text_BD).sum(dim=1)
        log_count_B = _count_others(features.index_B, index_M).clamp_min(1).to(positive_B.dtype).log()
        chunks = [
            (other_2MD, index_M, embedding_2BD[:, rows], positive_B[rows], features.index_B[rows], logit_scale)
            for rows in slices(len(positive_B), self.chunk_rows)
        ]
        log_sum_2B = predict_in_chunks(_log_sum_over_others, chunks)
        return add_eps(log_sum_2B - log_count_B, self.eps)


def _count_others(index_B: Tensor, index_M: Tensor) -> Tensor:
    """Count each anchor's Q_i, (B,)."""
    sorted_M = index_M.sort().values
    empty_and_own_2B = torch.stack((torch.full_like(index_B, EMPTY), index_B))
    until_2B, before_2B = (torch.searchsorted(sorted_M, empty_and_own_2B, right=right) for right in (True, False))
    return len(sorted_M) - (until_2B - before_2B).sum(dim=0)


def _log_sum_over_others(
    other_2MD: Tensor,
    index_M: Tensor,
    embedding_2CD: Tensor,
    positive_C: Tensor,
    index_C: Tensor,
    logit_scale: Tensor,
) -> Tensor:
    left_out_CM = (index_M == index_C[:, None]).logical_or_(index_M == EMPTY)
    logit_2CM = logit_scale * cosines_above(positive_C, embedding_2CD, other_2MD)
    # A finite number leaves an anchor that has no others at log eps, without NaN in its gradient.
    return logit_2CM.masked_fill_(left_out_CM, torch.finfo(logit_2CM.dtype).min).logsumexp(dim=2)


class Queue(OtherPairs):
    """The embeddings of the last batches, the current one among them.

    So alpha, and only alpha, is that of a batch of M pairs; it errs by the variance of a mean over them, and by what
    encoders have moved since. In a batch of distinct pairs a weight exp(log gamma_i - alpha_i) is at most
    |Q_i| / (G - 1).

    Args:
        num_embeddings: M, rounded up to whole batches.
        embed_dim: D.
        global_batch_size: G.
        eps: The constant inside the logarithm.
        chunk_rows: Anchors whose similarities to one batch's embeddings are held at once: of the queue's, no more.

    Source: none, an alternative of ours. A queue of past embeddings as negatives of the loss, where they also enter
    the gradient, is MoCo's, arXiv:1911.05722, and cross-batch memory's, arXiv:1912.06798.
    """

    other_2NGD: Tensor
    index_NG: Tensor

    def __init__(
        self, num_embeddings: int, embed_dim: int, *, global_batch_size: int, eps: float, chunk_rows: int
    ) -> None:
        self.num_batches = math.ceil(num_embeddings / global_batch_size)
        super().__init__(eps=eps, chunk_rows=max(1, chunk_rows // self.num_batches))
        self.register_buffer("other_2NGD", torch.zeros(2, self.num_batches, global_batch_size, embed_dim))
        self.register_buffer("index_NG", torch.full((self.num_batches, global_batch_size), EMPTY))

    @torch.no_grad()
    def observe(self, batch: Observed) -> None:
        """Let the batch take the place of the oldest one."""
        slot = batch.step % self.num_batches
        self.other_2NGD[:, slot] = batch.embedding_2GD.flip(0).to(self.other_2NGD)
        self.index_NG[slot] = batch.index_G

    def is_ready(self, index_B: Tensor) -> Tensor:
        """Return whether there has been a batch, scalar."""
        return (self.index_NG != EMPTY).any()

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        return self.other_2NGD.flatten(1, 2), self.index_NG.flatten()


class Fresh(OtherPairs):
    """M random pairs of the training set, encoded in this step by the current encoders: `Features.extra`.

    alpha errs by the variance of a mean over them alone. It is what the network is to come near to: a control, whose
    encoders run M pairs more a step.
    """

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        extra = features.extra
        if extra is None:
            raise ValueError(
                "features.extra is missing: it holds num_extra_pairs further pairs, which the engine's trainer brings"
            )
        return torch.stack((extra.text_BD, extra.image_BD)), extra.index_B

    def is_ready(self, index_B: Tensor) -> Tensor:
        """See `Stored.is_ready`: always."""
        return torch.ones_like(index_B, dtype=torch.bool)


class Batch(OtherPairs):
    """The global batch itself: alpha is the batch's own estimate, and every weight exp(log gamma - alpha) is 1.

    Args:
        eps: The constant inside the logarithm.
        chunk_rows: Anchors whose similarities to the batch are held at once.
        collectives: The processes that share the batch.
    """

    def __init__(self, *, eps: float, chunk_rows: int, collectives: Collectives) -> None:
        super().__init__(eps=eps, chunk_rows=chunk_rows)
        self.collectives = collectives

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        gather = self.collectives.gather
        other_2GD = torch.stack((gather(features.text_BD.detach()), gather(features.image_BD.detach())))
        return other_2GD, gather(features.index_B)

    def is_ready(self, index_B: Tensor) -> Tensor:
        """See `Stored.is_ready`: always."""
        return torch.ones_like(index_B, dtype=torch.bool)
