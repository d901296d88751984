"""Measure the error of a method's log-normalizers against the exact ones over the whole training set.

Shape suffixes: G global batch, A anchors, C chunk of anchors, P pairs to add, K random pairs, D embedding. Ranks are
those of `engine.training.sweep`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from engine import files, paths
from engine.contrastive import add_eps
from engine.method import Features, Method, Progress
from engine.schema.record import NormalizerError
from engine.training.sweep import Part, encode_all
from engine.training.trainer import Trainer

_CHUNK_ROWS = 1024
_SAMPLE_SIZE = 2048
_MAX_PERMUTED = 1 << 25
"""Pairs of the largest set that is permuted to draw some of it: 256 MiB."""


class Measurement(NamedTuple):
    """The error of a method's log-normalizers, and a sample of the values behind it."""

    error: NormalizerError
    sample: bytes
    """A safetensors file: `estimate` and `exact`, float32, (2, at most 2048): image and text side of the first anchors,
    which are random pairs. An estimate that the method lacks is not finite."""


def measure_normalizers(trainer: Trainer, before_batch: Callable[[], None]) -> NormalizerError:
    """Measure the error of log-normalizers as `measure_normalizer_error` does, and write down the sample."""
    error, sample = measure_normalizer_error(trainer, before_batch)
    if trainer.collectives.rank == 0:
        path = paths.log_normalizers(trainer.spec.run_id, error.samples_seen)
        with files.atomic_write(path, num_bytes=len(sample)) as temporary:
            temporary.write_bytes(sample)
    return error


@torch.no_grad()
def measure_normalizer_error(trainer: Trainer, before_batch: Callable[[], None] = lambda: None) -> Measurement:
    """Compare `Method.log_normalizers` with the exact values of what they estimate.

    That is log(eps + g) with the method's `normalizer_eps`, each anchor at its temperature: `anchor_logit_scales`.
    Embeddings are those of training, see `sweep.encode_all`, augmented as in the current epoch. The method's state is
    left as it was. Every process calls this together.

    Args:
        trainer: The run, after a step; its `normalizer_error` says how many anchors, and how many pairs the control.
        before_batch: Called before a batch is encoded; what it raises ends the measurement.
    """
    spec, method, num_pairs = trainer.spec.normalizer_error, trainer.method, trainer.dataset.index.pairs
    assert spec is not None
    progress = dataclasses.replace(trainer.progress(), step=trainer.step_number - 1)
    batch_size = progress.global_batch_size
    num_anchor_parts = min(math.ceil(spec.num_anchors / batch_size), num_pairs // batch_size)
    control_K = _draw_control(num_pairs, spec.control_size, method).to(trainer.device)

    anchors, estimates, control = [], [], []
    with contextlib.closing(encode_all(trainer, progress.epoch, num_anchor_parts, before_batch)) as parts:
        for part in itertools.islice(parts, num_anchor_parts):
            anchors.append(part)
            estimates.append(_estimate(method, part.features, progress))
        estimate_2A, scale_2A = torch.cat(estimates, dim=1).chunk(2)
        sums = _LogSums(anchors, scale_2A)
        for part in itertools.chain(anchors, parts):
            sums.add(part.image_PD, part.text_PD, part.rank_P)
            is_drawn_P = torch.isin(part.rank_P, control_K)
            control.append((part.image_PD[is_drawn_P], part.text_PD[is_drawn_P]))
    control_sums = _LogSums(anchors, scale_2A)
    image_KD, text_KD = (torch.cat(side) for side in zip(*control, strict=True))
    control_sums.add(image_KD, text_KD, control_K)

    num_anchors, eps = estimate_2A.shape[1], method.normalizer_eps
    exact_2A = add_eps(sums.log_sum_2A - math.log(num_pairs - 1), eps)
    # Never against itself: an anchor among the random pairs has one pair less.
    is_control_A = torch.isin(torch.arange(num_anchors, device=trainer.device), control_K)
    control_2A = add_eps(control_sums.log_sum_2A - (len(control_K) - is_control_A.double()).log(), eps)
    error_2A = estimate_2A.double() - exact_2A
    sample = _pack_sample(estimate=estimate_2A, exact=exact_2A)
    error = NormalizerError(
        samples_seen=trainer.samples_seen,
        temperature=1 / float(method.logit_scale),
        num_anchors=num_anchors,
        num_without_estimate=int((~error_2A.isfinite()).sum()),
        image_mse=_mean_of_known(error_2A[0].square()),
        text_mse=_mean_of_known(error_2A[1].square()),
        image_bias=_mean_of_known(error_2A[0]),
        text_bias=_mean_of_known(error_2A[1]),
        control_mse=float((control_2A - exact_2A).square().mean()),
        control_size=spec.control_size,
        eps=eps,
        sample_sha256=hashlib.sha256(sample).hexdigest(),
    )
    return Measurement(error, sample)


def _estimate(method: Method, features: Features, progress: Progress) -> Tensor:
    """Return the log-normalizers that a method estimates and the scales of its anchors, (2, G) each, as (4, G)."""
    estimate_2B = torch.stack(method.log_normalizers(features, progress))
    both_4B = torch.cat((estimate_2B, method.anchor_logit_scales(features)))
    return method.env.collectives.gather(both_4B.T.contiguous()).T


def _mean_of_known(values_A: Tensor) -> float | None:
    """Return the mean of the values that are finite; None if none is."""
    known = values_A[values_A.isfinite()]
    return float(known.mean()) if len(known) else None


def _pack_sample(**sides_2A: Tensor) -> bytes:
    """Return the values of the first anchors as a safetensors file."""
    sample = {name: values_2A[:, :_SAMPLE_SIZE].float().cpu().contiguous() for name, values_2A in sides_2A.items()}
    packed: bytes = safetensors.torch.save(sample)
    return packed


class _LogSums:
    """Adds up log sum over j != i of exp(s (x_i . y_j - d_i)), and of exp(s (y_i . x_j - d_i)), part by part.

    It never holds all embeddings or similarities: memory is O(A * rows of a part).

    Args:
        anchors: Parts that hold the anchors i, the first pairs in rank.
        scale_2A: s of each anchor on either side.
    """

    def __init__(self, anchors: Sequence[Part], scale_2A: Tensor) -> None:
        self._image_AD = torch.cat([part.image_PD for part in anchors])
        self._text_AD = torch.cat([part.text_PD for part in anchors])
        self._rank_A = torch.cat([part.rank_P for part in anchors])
        self._scale_2A = scale_2A
        self._positive_A = (self._image_AD * self._text_AD).sum(dim=1)
        self.log_sum_2A = torch.full_like(scale_2A, -math.inf, dtype=torch.float64)

    def add(self, image_PD: Tensor, text_PD: Tensor, rank_P: Tensor) -> None:
        """Add pairs j, given with their ranks."""
        for side, (anchor_AD, other_PD) in enumerate(((self._image_AD, text_PD), (self._text_AD, image_PD))):
            for start in range(0, len(anchor_AD), _CHUNK_ROWS):
                rows = slice(start, start + _CHUNK_ROWS)
                above_CP = anchor_AD[rows] @ other_PD.T - self._positive_A[rows, None]
                logits_CP = self._scale_2A[side, rows, None] * above_CP
                logits_CP.masked_fill_(self._rank_A[rows, None] == rank_P[None, :], -math.inf)
                added_C = logits_CP.logsumexp(dim=1).double()
                self.log_sum_2A[side, rows] = torch.logaddexp(self.log_sum_2A[side, rows], added_C)


def _draw_control(num_pairs: int, size: int, method: Method) -> Tensor:
    """Return the ranks of random pairs, (K,), ascending, for an estimate that learns nothing."""
    generator, size = method.env.generator("random control"), min(size, num_pairs - 1)
    if num_pairs <= _MAX_PERMUTED:
        return torch.randperm(num_pairs, generator=generator)[:size].sort().values
    # No permutation of so many. Whatever is drawn stays, so that all sets of this size are as likely.
    drawn_K = torch.empty(0, dtype=torch.int64)
    while len(drawn_K) < size:
        more = torch.randint(num_pairs, (size - len(drawn_K),), generator=generator)
        drawn_K = torch.cat((drawn_K, more)).unique()  # type: ignore[no-untyped-call]
    return drawn_K
