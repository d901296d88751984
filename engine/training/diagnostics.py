"""Measure the error of a method's log-normalizers against the exact ones over the whole training set.

Shape suffixes: B local batch, G global batch, A anchors, C chunk of anchors, P pairs to add, K random pairs,
D embedding. A rank is a pair's place in the order of the measurement, which has the anchors first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import files, paths
from engine.contrastive import add_eps
from engine.data import order
from engine.data.loader import Request, load
from engine.method import Features, Method, Progress
from engine.schema.record import NormalizerError
from engine.stop import Stopped
from engine.training.trainer import Trainer

_ANCHOR_EPOCH = 1 << 40
"""A number that no epoch reaches: anchors are drawn in an order of their own."""

_CHUNK_ROWS = 1024
_SAMPLE_SIZE = 2048


class Measurement(NamedTuple):
    """The error of a method's log-normalizers, and a sample of the values behind it."""

    error: NormalizerError
    sample: bytes
    """A safetensors file: `estimate` and `exact`, float32, (2, at most 2048): image and text side of the first anchors,
    which are random pairs. An estimate that the method lacks is not finite."""


def is_due(trainer: Trainer) -> bool:
    """Tell if log-normalizers are to be measured after the last step."""
    spec = trainer.spec.normalizer_error
    return spec is not None and trainer.samples_seen in spec.at


def is_missing(trainer: Trainer) -> bool:
    """Tell if a measurement is due and not written down: it was given up, and the run resumed."""
    path = paths.normalizer_error(trainer.spec.run_id, trainer.samples_seen)
    # The first process writes it; others may not see it yet.
    is_there = trainer.collectives.broadcast(torch.tensor(float(path.exists()), device=trainer.device))
    return is_due(trainer) and not is_there


def measure_normalizers(trainer: Trainer, signals: Sequence[bool]) -> None:
    """Measure the error of log-normalizers after the last step, and write it down. Every process calls this.

    Args:
        trainer: The run.
        signals: For each of `engine.stop.STOP_SIGNALS`, if this process has got it by now.

    Raises:
        Stopped: On every process, as soon as any gets a signal: a measurement takes long, and can be made again.
    """
    run_id, samples_seen, ours = trainer.spec.run_id, trainer.samples_seen, trainer.collectives
    path = paths.normalizer_error(run_id, samples_seen)
    if ours.rank == 0:
        path.unlink(missing_ok=True)  # of an attempt that went back to before it

    def heed_signals() -> None:
        counts = ours.all_reduce(torch.tensor(signals, device=trainer.device, dtype=torch.int64), "sum").tolist()
        if any(counts):
            raise Stopped.by(counts, trainer.step_number)

    trainer.seed_draws(0)
    with trainer.clock.phase("diagnostics"):
        error, sample = measure_normalizer_error(trainer, heed_signals)
    if ours.rank == 0:
        sample_path = paths.log_normalizers(run_id, samples_seen)
        with files.atomic_write(sample_path, num_bytes=len(sample)) as temporary:
            temporary.write_bytes(sample)
        files.write_text(path, error.model_dump_json() + "\n")


@torch.no_grad()
def measure_normalizer_error(trainer: Trainer, before_batch: Callable[[], None] = lambda: None) -> Measurement:
    """Compare `Method.log_normalizers` with the exact values of what they estimate.

    That is log(eps + g) with the method's `normalizer_eps`, each anchor at its temperature: `anchor_logit_scales`.
    Embeddings are those of training: train-mode features of whole global batches, augmented as in the current epoch.
    Batch-norm statistics and the method's state are left as they were. Every process calls this together.

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
    with contextlib.closing(_encode_all(trainer, progress.epoch, num_anchor_parts, before_batch)) as parts:
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


class _Part(NamedTuple):
    """A global batch of the measurement."""

    features: Features
    """This process's rows."""
    image_PD: Tensor
    """Embeddings of the pairs of all processes that were in no part before."""
    text_PD: Tensor
    rank_P: Tensor
    """Their ranks in the order in which anchors come first."""


def _encode_all(
    trainer: Trainer, epoch: int, num_anchor_parts: int, before_batch: Callable[[], None]
) -> Generator[_Part, None, None]:
    """Yield all pairs of the data set, anchors first; only their parts have the pairs beyond the batch."""
    ours, num_pairs, batch_size = trainer.collectives, trainer.dataset.index.pairs, trainer.spec.global_batch_size
    spec, num_extra = trainer.spec, trainer.method.num_extra_pairs

    def requests() -> Iterator[Request]:
        for number, positions_G in enumerate(_batches(trainer.dataset.index.shard_sizes, spec.seed, batch_size)):
            extra = None
            if num_extra and number < num_anchor_parts:
                # Those of steps that the run does not have.
                positions = order.extra_positions(num_pairs, num_extra, seed=spec.seed, step=spec.num_steps + number)
                extra = Request(epoch, order.share(positions, ours.rank, ours.world_size))
            yield Request(epoch, order.share(positions_G, ours.rank, ours.world_size), extra)

    first = 0
    with contextlib.closing(load(trainer.dataset, requests(), trainer.execution.num_workers)) as batches:
        for batch in batches:
            before_batch()
            image_BD, text_BD = trainer.encoder.encode_detached(
                batch.image_BCHW.to(trainer.device), batch.tokens_BT.to(trainer.device)
            )
            extra = None if batch.extra is None else trainer.encode_extra(batch.extra)
            features = Features(image_BD, text_BD, batch.index_B.to(trainer.device), extra)
            # The last batch is filled up at its beginning, with pairs that were there already.
            fresh = min(batch_size, num_pairs - first)
            rank_P = torch.arange(first, first + fresh, device=trainer.device)
            yield _Part(features, ours.gather(image_BD)[-fresh:], ours.gather(text_BD)[-fresh:], rank_P)
            first += fresh


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

    def __init__(self, anchors: Sequence[_Part], scale_2A: Tensor) -> None:
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


def _batches(shard_sizes: Sequence[int], seed: int, global_batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield all positions in global batches, anchors first; pairs before it fill up the last one."""
    last = rest = np.empty(0, dtype=np.int64)
    for window in order.epoch_order(shard_sizes, seed=seed, epoch=_ANCHOR_EPOCH):
        rest = np.concatenate([rest, window])
        while len(rest) >= global_batch_size:
            last, rest = rest[:global_batch_size], rest[global_batch_size:]
            yield last
    if len(rest):
        yield np.concatenate([last, rest])[-global_batch_size:]


def _draw_control(num_pairs: int, size: int, method: Method) -> Tensor:
    """Return the ranks of random pairs, (K,), ascending, for an estimate that learns nothing."""
    generator = method.env.generator("random control")
    return torch.randperm(num_pairs, generator=generator)[: min(size, num_pairs - 1)].sort().values
