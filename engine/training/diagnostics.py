"""How far a method's log-normalizers are from the exact ones over the whole training set.

Shape suffixes: B local batch, G global batch, A anchors, C chunk of anchors, P pairs to add, K random pairs,
D embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.contrastive import add_eps
from engine.data import order
from engine.data.loader import PairDataset, Request, load
from engine.method import Features, Method, Progress
from engine.schema.record import NormalizerError
from engine.schema.run import NormalizerErrorSpec

_ANCHOR_EPOCH = 1 << 40
"""A number no epoch reaches: anchors are drawn in an order of their own."""

_CHUNK_ROWS = 1024
_SAMPLE_SIZE = 2048

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Measurement(NamedTuple):
    """The error of a method's log-normalizers, and what it is made of for some anchors."""

    error: NormalizerError
    sample: bytes
    """A safetensors file: `estimate` and `exact`, float32, (2, at most 2048): the image and the text side of the first
    anchors, which were drawn at random. An estimate that the method lacks is not finite."""


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
    num_workers: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> Measurement | None:
    """Compare `method.log_normalizers` with the exact values of what they estimate.

    That is log(eps + g) with the method's `normalizer_eps`, each anchor at its temperature: `anchor_logit_scales`.
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
        num_workers: Data loader processes.
        is_over: Asked before every batch: whether to give up. Every process must get the same answer.

    Returns:
        The error with its sample; None if the measurement was given up.
    """
    collectives = method.env.collectives
    num_pairs, whole_batches = dataset.index.pairs, dataset.index.pairs // global_batch_size
    num_anchor_batches = min(math.ceil(spec.num_anchors / global_batch_size), whole_batches)
    num_anchors = num_anchor_batches * global_batch_size
    control = _draw_control(num_pairs, spec.control_size, method)
    local = global_batch_size // collectives.world_size
    rows = slice(collectives.rank * local, (collectives.rank + 1) * local)
    batches = _batches(dataset.index.shard_sizes, seed, global_batch_size)
    requests = (Request(progress.epoch, positions[rows]) for positions in batches)

    buffers = {name: value.clone() for name, value in towers.named_buffers()}
    anchor_parts: list[tuple[Tensor, Tensor]] = []
    estimate_parts: list[Tensor] = []
    control_parts: list[tuple[Tensor, Tensor]] = []
    sums: _LogSums | None = None
    first, given_up = 0, False
    for batch in load(dataset, requests, num_workers):
        given_up = is_over()
        if given_up:
            break
        image_BD, text_BD = encode(batch.image_BCHW.to(device), batch.tokens_BT.to(device))
        image_GD, text_GD = collectives.gather(image_BD), collectives.gather(text_BD)
        # The last batch is filled up at its beginning, with pairs that were counted already.
        fresh = min(global_batch_size, num_pairs - first)
        image_GD, text_GD = image_GD[-fresh:], text_GD[-fresh:]
        drawn = control[(control >= first) & (control < first + fresh)].to(device) - first
        control_parts.append((image_GD[drawn], text_GD[drawn]))
        first += fresh
        if len(anchor_parts) < num_anchor_batches:
            anchor_parts.append((image_GD, text_GD))
            features = Features(image_BD, text_BD, batch.index_B.to(device))
            estimates_2B = torch.stack(method.log_normalizers(features, progress))
            scales_2B = method.anchor_logit_scales(features)
            estimate_parts.append(collectives.gather(torch.cat((estimates_2B, scales_2B)).T.contiguous()).T)
            if len(anchor_parts) < num_anchor_batches:
                continue
            image_AD, text_AD = (torch.cat(side) for side in zip(*anchor_parts, strict=True))
            estimate_2A, scale_2A = torch.cat(estimate_parts, dim=1).chunk(2)
            sums = _LogSums(image_AD, text_AD, scale_2A)
            for number, (image_GD, text_GD) in enumerate(anchor_parts):
                sums.add(image_GD, text_GD, number * global_batch_size)
        elif sums is not None:
            sums.add(image_GD, text_GD, first - fresh)
    for name, value in towers.named_buffers():
        value.copy_(buffers[name])
    if given_up:
        return None

    assert sums is not None
    eps = method.normalizer_eps
    exact_2A = add_eps(sums.log_sum_2A - math.log(num_pairs - 1), eps)
    image_KD, text_KD = (torch.cat(side) for side in zip(*control_parts, strict=True))
    control_sums = _LogSums(image_AD, text_AD, scale_2A)
    control_sums.add(image_KD, text_KD, control.to(device))
    # Never against itself: an anchor among the random pairs has one pair less.
    control_count_A = len(control) - torch.isin(torch.arange(num_anchors), control).to(device, torch.float64)
    control_2A = add_eps(control_sums.log_sum_2A - control_count_A.log(), eps)
    error_2A = estimate_2A.double() - exact_2A
    known_2A = torch.isfinite(error_2A)

    def mean(values_A: Tensor, side: int) -> float | None:
        selected = values_A[known_2A[side]]
        return float(selected.mean()) if len(selected) else None

    sides = {"estimate": estimate_2A, "exact": exact_2A}
    sample = {name: values[:, :_SAMPLE_SIZE].float().cpu().contiguous() for name, values in sides.items()}
    sample_bytes = safetensors.torch.save(sample)
    error = NormalizerError(
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
        eps=eps,
        sample_sha256=hashlib.sha256(sample_bytes).hexdigest(),
    )
    return Measurement(error, sample_bytes)


class _LogSums:
    """log of the sums over j != i of exp(s (x_i . y_j - d_i)) and exp(s (y_i . x_j - d_i)), added up part by part.

    So neither all embeddings nor all similarities are ever held: memory is O(A * rows of a part). Each anchor has an s
    of its own on either side.
    """

    def __init__(self, image_AD: Tensor, text_AD: Tensor, scale_2A: Tensor) -> None:
        self._image_AD, self._text_AD, self._scale_2A = image_AD, text_AD, scale_2A
        self._positive_A = (image_AD * text_AD).sum(dim=1)
        self._ids_A = torch.arange(len(image_AD), device=image_AD.device)
        self.log_sum_2A = torch.full((2, len(image_AD)), -math.inf, dtype=torch.float64, device=image_AD.device)

    def add(self, image_PD: Tensor, text_PD: Tensor, ids: int | Tensor) -> None:
        """Add pairs; `ids` are their ranks in the order in which anchors come first, (P,), or the first of a row."""
        ids_P = torch.arange(len(image_PD), device=image_PD.device) + ids if isinstance(ids, int) else ids
        for side, (anchor_AD, other_PD) in enumerate(((self._image_AD, text_PD), (self._text_AD, image_PD))):
            for start in range(0, len(anchor_AD), _CHUNK_ROWS):
                rows = slice(start, start + _CHUNK_ROWS)
                above_CP = anchor_AD[rows] @ other_PD.T - self._positive_A[rows, None]
                logits_CP = self._scale_2A[side, rows, None] * above_CP
                logits_CP.masked_fill_(self._ids_A[rows, None] == ids_P[None, :], -math.inf)
                added_C = logits_CP.logsumexp(dim=1).double()
                self.log_sum_2A[side, rows] = torch.logaddexp(self.log_sum_2A[side, rows], added_C)


def _batches(shard_sizes: Sequence[int], seed: int, global_batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield all pairs in global batches, anchors first; the last batch is filled up with the pairs before it."""
    last = rest = np.empty(0, dtype=np.int64)
    for window in order.epoch_order(shard_sizes, seed=seed, epoch=_ANCHOR_EPOCH):
        rest = np.concatenate([rest, window])
        while len(rest) >= global_batch_size:
            last, rest = rest[:global_batch_size], rest[global_batch_size:]
            yield last
    if len(rest):
        yield np.concatenate([last, rest])[-global_batch_size:]


def _draw_control(num_pairs: int, size: int, method: Method) -> Tensor:
    """Draw ranks of random pairs, (K,) in ascending order, for an estimate that learns nothing."""
    generator = method.env.generator("random control")
    return torch.randperm(num_pairs, generator=generator)[: min(size, num_pairs - 1)].sort().values
