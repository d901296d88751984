"""Log-normalizers from the embeddings of other pairs themselves: what the controls have in place of NeuCLIP's network.

Shape suffixes: 2 sides (image anchors, text anchors), B local anchors, C chunk of anchors, M embeddings of other pairs,
D embedding.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from engine.contrastive import add_eps
from engine.method import Features
from neuclip.method import Unified
from neuclip.normalizer import cosines_above, predict_in_chunks, slices

EMPTY = -1
"""Position of what is no pair."""


class OtherPairs(Unified):
    """UNIFIED with a mean over M other pairs as normalizer. Subclasses say which pairs.

        alpha_i = log( eps + mean over k in Q_i of exp( (e_i . y_k - s_i) / tau ) )

    with y_k the other modality's embeddings and Q_i all of them but those of pair i itself: its own would add about
    1 / M, often more than all others together. Every process predicts for its own anchors alone.
    """

    @abstractmethod
    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the other modality's embeddings, (2, M, D), and their pairs' positions, (M,); `EMPTY` is no pair."""

    @property
    def chunk_rows(self) -> int:
        """Anchors whose similarities to all M are held at once."""
        return self.config.chunk_rows

    def predict(self, features: Features, logit_scale: Tensor, pair_G2D: Tensor | None = None) -> Tensor:
        """See `Unified.predict`; differentiable in the anchors and in logit_scale."""
        other_2MD, index_M = self.others(features)
        embedding_2BD = torch.stack((features.image_BD, features.text_BD))
        positive_B = (features.image_BD * features.text_BD).sum(dim=1)
        log_count_B = _count_others(features.index_B, index_M).clamp_min(1).to(positive_B.dtype).log()
        chunks = [
            (other_2MD, index_M, embedding_2BD[:, rows], positive_B[rows], features.index_B[rows], logit_scale)
            for rows in slices(len(positive_B), self.chunk_rows)
        ]
        return add_eps(predict_in_chunks(_log_sum_over_others, chunks) - log_count_B, self.config.eps)


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
