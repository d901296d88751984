"""How far a method's log-normalizers are from the exact ones over the whole training set.

Shape suffixes: B local batch, G global batch, A anchors, N data set, K random pairs, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from engine import order
from engine.contrastive import log_partitions
from engine.data import PairDataset, Request
from engine.method import Features, Method, Progress
from engine.record import NormalizerError
from engine.spec import NormalizerErrorSpec

_ANCHOR_EPOCH = 1 << 40
"""A number no epoch reaches: anchors are drawn in an order of their own."""

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def measure_normalizer_error(
    spec: NormalizerErrorSpec,
    *,
    towers: nn.Module,
    encode: Encode,
    dataset: PairDataset,
    method: Method,
    progress: Progress,
    global_batch_size: int,
    seed: int,
    device: torch.device,
) -> NormalizerError:
    """Compare `method.log_normalizers` with the exact values at the method's current temperature.

    Embeddings are those of training: train-mode features of whole global batches, augmented as in the current epoch.
    Batch-norm statistics and the method's state are left as they were. Every process calls this together.

    Args:
        spec: How many anchors; size of the random control.
        towers: The encoders, whose buffers are restored.
        encode: From (images, tokens) on the device to embeddings of the local rows.
        dataset: The training set.
        method: The method to ask.
        progress: Where training stands.
        global_batch_size: Pairs per batch, over all processes.
        seed: The run's seed.
        device: Where to compute.
    """
    collectives = method.env.collectives
    num_pairs = dataset.index.pairs
    permuted = np.concatenate(list(order.epoch_order(dataset.index.shard_sizes, seed=seed, epoch=_ANCHOR_EPOCH)))
    # The last batch is filled up with pairs seen before, so that every batch is whole.
    batches = [
        permuted[i : i + global_batch_size] for i in range(0, num_pairs - global_batch_size + 1, global_batch_size)
    ]
    if num_pairs % global_batch_size:
        batches.append(permuted[-global_batch_size:])
    num_anchor_batches = min(math.ceil(spec.num_anchors / global_batch_size), num_pairs // global_batch_size)

    buffers = {name: value.clone() for name, value in towers.named_buffers()}
    local = global_batch_size // collectives.world_size
    rows = slice(collectives.rank * local, (collectives.rank + 1) * local)
    image_parts, text_parts, estimate_parts = [], [], []
    for number, positions in enumerate(batches):
        batch = dataset[Request(progress.epoch, positions[rows])]
        image_BD, text_BD = encode(batch.image_BCHW.to(device), batch.tokens_BT.to(device))
        image_parts.append(collectives.gather(image_BD))
        text_parts.append(collectives.gather(text_BD))
        if number < num_anchor_batches:
            features = Features(image_BD, text_BD, batch.index_B.to(device))
            estimates_2B = torch.stack(method.log_normalizers(features, progress))
            estimate_parts.append(collectives.gather(estimates_2B.T.contiguous()).T)
    for name, value in towers.named_buffers():
        value.copy_(buffers[name])

    # Anchors come first in `permuted`, so a pair's row is its rank there; the filled-up batch adds its new tail.
    fresh = num_pairs - (len(batches) - 1) * global_batch_size
    image_ND = torch.cat([*image_parts[:-1], image_parts[-1][-fresh:]])
    text_ND = torch.cat([*text_parts[:-1], text_parts[-1][-fresh:]])
    estimate_2A = torch.cat(estimate_parts, dim=1)
    num_anchors = estimate_2A.shape[1]
    anchors = slice(0, num_anchors)
    exact_2A = torch.stack(
        log_partitions(image_ND[anchors], text_ND[anchors], image_ND, text_ND, method.logit_scale, chunk_rows=256)
    )
    control_2A = _random_control(image_ND, text_ND, num_anchors, spec.control_size, method)
    error_2A = estimate_2A.to(exact_2A.dtype) - exact_2A
    known_2A = torch.isfinite(error_2A)

    def mean(values_A: Tensor, side: int) -> float | None:
        selected = values_A[known_2A[side]]
        return float(selected.mean()) if len(selected) else None

    return NormalizerError(
        samples_seen=(progress.step + 1) * global_batch_size,
        temperature=1 / float(method.logit_scale),
        num_anchors=num_anchors,
        num_without_estimate=int((~known_2A).sum()),
        image_mse=mean(error_2A[0].square(), 0),
        text_mse=mean(error_2A[1].square(), 1),
        image_bias=mean(error_2A[0], 0),
        text_bias=mean(error_2A[1], 1),
        control_mse=float((control_2A - exact_2A).square().mean()),
        control_size=spec.control_size,
    )


def _random_control(image_ND: Tensor, text_ND: Tensor, num_anchors: int, size: int, method: Method) -> Tensor:
    """Estimate with the mean over `size` fresh random other pairs: (2, A). Never includes the anchor itself."""
    num_pairs = len(image_ND)
    size = min(size, num_pairs - 1)
    generator = method.env.generator("random control")
    drawn_K = torch.randperm(num_pairs, generator=generator)[:size].to(image_ND.device)
    scale = method.logit_scale
    positive_A = (image_ND[:num_anchors] * text_ND[:num_anchors]).sum(dim=1)
    own_AK = torch.arange(num_anchors, device=image_ND.device)[:, None] == drawn_K[None, :]
    count_A = size - own_AK.sum(dim=1)
    sides = []
    for anchor_ND, other_ND in ((image_ND, text_ND), (text_ND, image_ND)):
        logits_AK = scale * (anchor_ND[:num_anchors] @ other_ND[drawn_K].T - positive_A[:, None])
        sides.append(logits_AK.masked_fill(own_AK, -math.inf).logsumexp(dim=1) - count_A.log())
    return torch.stack(sides)
