"""Contrastive sums that several methods share; they never hold all pairs of a batch at once.

With unit embeddings x_i, y_i of pair i, d_i = x_i . y_i and s = 1 / temperature:

    g1_i = mean over j != i of exp(s (x_i . y_j - d_i))      image i against the other texts
    g2_i = mean over j != i of exp(s (y_i . x_j - d_i))      text i against the other images

Computed in log space, in float32 (or float64 when given that), so that no temperature overflows.
Shape suffixes: B local anchors, G global batch, C chunk of anchors, D embedding.
"""

from __future__ import annotations

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
    positive_B = (image_BD * text_BD).sum(dim=1)
    return (
        _log_partition(image_BD, text_GD, positive_B, scale_image, offset, chunk_rows),
        _log_partition(text_BD, image_GD, positive_B, scale_text, offset, chunk_rows),
    )


def add_eps(log_g: Tensor, eps: float) -> Tensor:
    """Return log(eps + g) for any shape of log g; eps >= 0."""
    return torch.logaddexp(log_g, log_g.new_full((), math.log(eps) if eps else -math.inf))


def log_mix(log_a: Tensor, log_b: Tensor, weight_b: float) -> Tensor:
    """Return log((1 - w) a + w b) from log a and log b; exactly one of them at w = 0 and w = 1."""
    if weight_b in (0, 1):
        return log_b if weight_b else log_a
    return torch.logaddexp(log_a + math.log1p(-weight_b), log_b + math.log(weight_b))


def _log_partition(
    anchor_BD: Tensor, other_GD: Tensor, positive_B: Tensor, scale: Tensor, offset: int, chunk_rows: int
) -> Tensor:
    num_anchors = len(anchor_BD)
    scale_B = scale.expand(num_anchors)
    chunks = [
        (anchor_BD[rows], other_GD, positive_B[rows], scale_B[rows], offset + rows.start)
        for rows in (slice(i, min(i + chunk_rows, num_anchors)) for i in range(0, num_anchors, chunk_rows))
    ]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([_chunk(*chunk) for chunk in chunks])
    # Nothing in a chunk is random, so there is no generator's state to keep.
    return torch.cat([checkpoint(_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def _chunk(anchor_CD: Tensor, other_GD: Tensor, positive_C: Tensor, scale_C: Tensor, first_row: int) -> Tensor:
    logits_CG = scale_C[:, None] * (anchor_CD @ other_GD.T - positive_C[:, None])
    own = torch.arange(len(anchor_CD), device=logits_CG.device)
    # The diagonal is masked inside: taking exp(0) off afterwards would lose every small g to rounding.
    mask_CG = torch.zeros_like(logits_CG, dtype=torch.bool)
    mask_CG[own, own + first_row] = True
    logits_CG = logits_CG.masked_fill(mask_CG, -math.inf)
    return torch.logsumexp(logits_CG, dim=1) - math.log(len(other_GD) - 1)
