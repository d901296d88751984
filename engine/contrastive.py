"""Contrastive sums that several methods share; they never hold all pairs of a batch at once.

With unit embeddings x_i, y_i of pair i, d_i = x_i . y_i and s = 1 / temperature:

    g1_i = mean over j != i of exp(s (x_i . y_j - d_i))      image i against the other texts
    g2_i = mean over j != i of exp(s (y_i . x_j - d_i))      text i against the other images

Computed in log space, in float32 (or float64 when given that), so that no temperature overflows.
Shape suffixes: B local anchors, G global batch, C chunk of anchors, D embedding.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK_ROWS = 1024


def log_partitions(
    image_BD: Tensor,
    text_BD: Tensor,
    image_GD: Tensor,
    text_GD: Tensor,
    logit_scale: Tensor | tuple[Tensor, Tensor],
    *,
    offset: int = 0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log g1 and log g2 of the local anchors against the global batch.

    Differentiable in every tensor. Anchors are taken `chunk_rows` at a time and a chunk's similarities are
    computed again in the backward pass, so that peak memory is O(chunk_rows * G) instead of O(B * G).

    Args:
        image_BD: Unit image embeddings of the local pairs, (B, D).
        text_BD: Unit text embeddings of the local pairs, (B, D).
        image_GD: Unit image embeddings of the global batch, (G, D), G >= 2.
        text_GD: Unit text embeddings of the global batch, (G, D).
        logit_scale: s, a scalar, or a pair of scalars or (B,) vectors: for image and for text anchors.
        offset: Row of the global batch at which the local pairs begin.
        chunk_rows: Anchors per chunk; None takes `DEFAULT_CHUNK_ROWS`.

    Returns:
        log g1 and log g2, shape (B,) each.

    Raises:
        ValueError: If the global batch has fewer than two pairs.

    Source: FastCLIP, arXiv:2407.01445, Section 3 (g1, g2).
    """
    if len(image_GD) < 2:
        raise ValueError(f"a contrastive loss needs a global batch of at least 2 pairs, got {len(image_GD)}")
    chunk_rows = DEFAULT_CHUNK_ROWS if chunk_rows is None else chunk_rows
    scale_image, scale_text = logit_scale if isinstance(logit_scale, tuple) else (logit_scale, logit_scale)
    num_local = len(image_BD)
    positive_B = (image_BD * text_BD).sum(dim=1)
    sides = [
        (image_BD, text_GD, positive_B, scale_image.expand(num_local)),
        (text_BD, image_GD, positive_B, scale_text.expand(num_local)),
    ]
    if num_local <= chunk_rows:
        own_BG = _own_pairs(num_local, len(image_GD), offset, image_GD.device)
        log_g1_B, log_g2_B = (_log_g(*side, own_BG) for side in sides)
    else:
        log_g1_B, log_g2_B = (_in_chunks(*side, offset, chunk_rows) for side in sides)
    return log_g1_B, log_g2_B


def add_eps(log_g: Tensor, eps: float) -> Tensor:
    """Return log(eps + g) for any shape of log g; eps >= 0."""
    return torch.logaddexp(log_g, log_g.new_full((), math.log(eps) if eps else -math.inf))


def log_mix(log_a: Tensor, log_b: Tensor, weight_b: float) -> Tensor:
    """Return log((1 - w) a + w b) from log a and log b; exactly one of them at w = 0 and w = 1."""
    if weight_b in (0, 1):
        return log_b if weight_b else log_a
    return torch.logaddexp(log_a + math.log1p(-weight_b), log_b + math.log(weight_b))


def _own_pairs(num_anchors: int, num_pairs: int, first_row: int, device: torch.device) -> Tensor:
    own_CG = torch.zeros(num_anchors, num_pairs, dtype=torch.bool, device=device)
    own_CG.diagonal(first_row).fill_(True)
    return own_CG


def _log_g(anchor_CD: Tensor, other_GD: Tensor, positive_C: Tensor, scale_C: Tensor, own_CG: Tensor) -> Tensor:
    logits_CG = scale_C[:, None] * (anchor_CD @ other_GD.T - positive_C[:, None])
    # The diagonal is masked inside: taking exp(0) off afterwards would lose every small g to rounding.
    return logits_CG.masked_fill_(own_CG, -math.inf).logsumexp(dim=1) - math.log(len(other_GD) - 1)


def _in_chunks(
    anchor_BD: Tensor, other_GD: Tensor, positive_B: Tensor, scale_B: Tensor, offset: int, chunk_rows: int
) -> Tensor:
    def chunk(rows: slice) -> Tensor:
        anchor_CD = anchor_BD[rows]
        own_CG = _own_pairs(len(anchor_CD), len(other_GD), offset + rows.start, other_GD.device)
        return _log_g(anchor_CD, other_GD, positive_B[rows], scale_B[rows], own_CG)

    if torch.is_grad_enabled():
        # Nothing in a chunk is random, so there is no generator's state to keep.
        chunk = functools.partial(checkpoint, chunk, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([chunk(slice(first, first + chunk_rows)) for first in range(0, len(anchor_BD), chunk_rows)])
