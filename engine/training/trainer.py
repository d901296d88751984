"""Hold the state of a run in one process: take a step, save, resume. No method is known by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine import files, paths
from engine.data.index import Index, read_index
from engine.data.loader import Batch, PairDataset
from engine.distributed import Collectives
from engine.method import Features, LossOutput, MethodEnv, Progress
from engine.registry import build_method
from engine.schema.base import fingerprint
from engine.schema.run import DatasetSpec, Execution, RunSpec
from engine.stop import STOP_SIGNALS
from engine.training import checkpoint
from engine.training.encoder import Encoder
from engine.training.optim import Optimizer
from engine.training.reporting import (
    Clock,
    embedding_moments,
    embedding_spread,
    forget_peak_memory,
    mean_metrics,
    pack_metrics,
)
from engine.training.towers import build_towers, embed_dim, introduce, tokenizer

NUM_INDICES = 100
"""Positions that a record lists: of the first pairs of the run, and of the batch at which it diverged."""
_FEW_SAMPLES = 10_000
"""Least number of samples that a fraction of replaced ones is taken of: the first may well be broken."""
_MAX_SKIPPED_IN_A_ROW = 20
"""Skipped steps in a row that mean divergence. The first steps may skip some: each halves a loss scale of 2^16."""
_MIN_LOSS_SCALE = 1.0


class Votes(NamedTuple):
    """Requests of one process after a step; their sums over processes decide what all of them do."""

    stop: tuple[int, ...] = (0,) * len(STOP_SIGNALS)
    """Processes that got each of `STOP_SIGNALS`."""
    save: int = 0
    """Processes that ask for a checkpoint."""
    num_replaced: int = 0
    """Samples of the step that were replaced."""


class StepOutcome(NamedTuple):
    """Metrics of a step, and what follows it."""

    metrics: dict[str, float]
    """Means over all processes; empty if the step was not timed or does not count."""
    votes: Votes
    """Sums over all processes."""
    divergence: str | None = None
    """The reason if training has diverged; the step then does not count."""


class Trainer:
    """The state of a run in this process, and the steps that move it."""

    def __init__(self, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives) -> None:
        self.spec, self.execution, self.device, self.collectives = spec, execution, device, collectives
        # cuDNN would round fp32 to TF32.
        torch.backends.cudnn.allow_tf32 = spec.precision != "fp32"
        index_path = paths.index(spec.dataset.name)
        index = _read_index(index_path, spec.dataset)
        # With channels innermost, convolutions are faster on CPUs and on GPUs; other layers do not change.
        introduce(spec.model)
        self.towers = build_towers(spec.model.name, seed=spec.seed)
        self.towers.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        cache_gib = execution.cache_gib if execution.cache_decoded else 0.0
        self.dataset = PairDataset(
            index,
            index_path,
            image_size=self.towers.image_size,
            tokenizer=tokenizer(spec.model.name),
            augmentation=spec.augmentation,
            seed=spec.seed,
            # Every loader process has a cache of its own.
            cache_bytes=int(cache_gib * 2**30 / max(1, execution.num_workers)),
        )
        self.steps_per_epoch = index.pairs // spec.global_batch_size
        self.method = build_method(spec.method, MethodEnv.of(spec, embed_dim(self.towers), collectives)).to(device)
        self.optimizer = Optimizer(self.towers, self.method, spec.optimizer, spec.num_steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.averaged: AveragedModel | None = None
        if spec.optimizer.ema_decay:
            # Copied before the encoder shares batch norms: process groups cannot be copied.
            average = get_ema_multi_avg_fn(spec.optimizer.ema_decay)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(self.towers, multi_avg_fn=average, use_buffers=True)
        self.encoder = Encoder(self.towers, spec, execution, device, collectives)
        self.clock = Clock(device)
        self.step_number = 0
        self.first_indices: list[int] = []
        self.num_replaced = 0
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0

    # One step ---------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return the place of the next step."""
        return Progress(self.step_number, self.steps_per_epoch, self.spec.num_steps, self.spec.global_batch_size)

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all processes."""
        return self.step_number * self.spec.global_batch_size

    def backward(self, batch: Batch) -> tuple[LossOutput, Features]:
        """Compute the loss of a batch and its gradients.

        The method sees the whole local batch, however many parts the encoder takes it in: with accumulation the parts
        are encoded once without gradient for the loss, and again for their share of it (GradCache, arXiv:2101.06983).

        Returns:
            This process's part of the loss, and the features that it was computed from.
        """
        num_parts = self.execution.accumulation_steps
        image_parts = batch.image_BCHW.to(self.device, non_blocking=True).chunk(num_parts)
        tokens_parts = batch.tokens_BT.to(self.device, non_blocking=True).chunk(num_parts)
        parts = list(zip(image_parts, tokens_parts, strict=True))
        extra = None
        if batch.extra is not None:
            with self.clock.phase("extra"):
                self.seed_draws("extra")
                extra = self.encode_extra(batch.extra)
        encode_first = self.encoder.encode if len(parts) == 1 else self.encoder.encode_detached
        encoded = []
        with self.clock.phase("encoder"):
            for number, part in enumerate(parts):
                self.seed_draws(number)
                encoded.append(encode_first(*part))
        with self.clock.phase("method"):
            image_BD, text_BD = (torch.cat(side).detach().requires_grad_() for side in zip(*encoded, strict=True))
            features = Features(image_BD, text_BD, batch.index_B.to(self.device), extra)
            output = self.method.loss(features, self.progress())
            torch.autograd.backward(self.scaler.scale(output.total))
        with self.clock.phase("encoder"):
            assert image_BD.grad is not None
            assert text_BD.grad is not None
            grads = zip(image_BD.grad.chunk(num_parts), text_BD.grad.chunk(num_parts), strict=True)
            for number, grad in enumerate(grads):
                is_last = number == len(parts) - 1
                with contextlib.nullcontext() if is_last else self.encoder.without_reduction():
                    if len(parts) > 1:
                        self.seed_draws(number)
                        encoded[number] = self.encoder.encode(*parts[number], moves_statistics=number == 0)
                    torch.autograd.backward(encoded[number], grad)
        return output, features

    def encode_extra(self, extra: Batch) -> Features:
        """Encode this process's share of the pairs beyond the batch; return those of all processes, without gradient.

        Batch norm sees them in parts as large as the batch's, and keeps no trace of them.
        """
        gather = self.collectives.gather
        image_BD, text_BD = self.encoder.encode_detached(
            extra.image_BCHW.to(self.device, non_blocking=True), extra.tokens_BT.to(self.device, non_blocking=True)
        )
        return Features(gather(image_BD), gather(text_BD), gather(extra.index_B.to(self.device)))

    def seed_draws(self, part: int | Literal["extra"]) -> None:
        """Seed torch's own generator (dropout) with the step and the part of the batch.

        So it draws the same numbers after a restart, and in both passes over a part.
        """
        purpose = f"part {part} on process {self.collectives.rank}"
        seed = self.method.env.generator(purpose, self.step_number).initial_seed()
        # Without a GPU, torch.manual_seed would spend a quarter of a millisecond on GPUs.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(self, batch: Batch, vote: Callable[[], Votes] = Votes, *, timing: bool) -> StepOutcome:
        """Take one optimiser step, and agree with the other processes on what comes after it.

        If the loss or its gradient is not finite on some process, no parameter moves on any, though the method may have
        updated its own state. In fp16 such a gradient skips the step; too many skipped steps are divergence.

        Args:
            batch: This process's rows.
            vote: Returns this process's votes; called late, so that a signal is obeyed after the step it arrived in.
            timing: Return metrics.

        Raises:
            ValueError: On every process, if they logged different metrics, or too many.
        """
        progress = self.progress()
        lr = self.optimizer.set_learning_rates(progress.step)
        temperature = 1 / self.method.logit_scale.detach()
        output, features = self.backward(batch)
        with self.clock.phase("optimizer"):
            for parameter in self.optimizer.method_parameters:
                if parameter.grad is not None:
                    self.collectives.all_reduce(parameter.grad, "mean")
            self.scaler.unscale_(self.optimizer.adamw)
            grad_norm = self.optimizer.clip_gradients()
            # One collective, and on a GPU one wait, for all that the processes must agree on.
            loss, votes = output.total.detach(), vote()
            flags = torch.stack([loss, ~torch.isfinite(loss), ~torch.isfinite(grad_norm)]).double()
            asked = torch.tensor([*votes.stop, votes.save, votes.num_replaced], device=self.device, dtype=torch.float64)
            logged: Sequence[Tensor] = ()
            if timing:
                moments = embedding_moments(features.image_BD, features.text_BD)
                logged = (pack_metrics(output.metrics, self.device), moments)
            sums = self.collectives.all_reduce(torch.cat([flags, asked, *logged]), "sum")
            agreed, *logged = torch.split(sums, [len(flags) + len(asked), *map(len, logged)])
            loss_sum, bad_losses, bad_gradients, *counts = agreed.tolist()
            *stop, save, num_replaced = map(int, counts)
            votes = Votes(tuple(stop), save, num_replaced)
            divergence = self._move(progress, is_loss_bad=bad_losses > 0, is_gradient_bad=bad_gradients > 0)
        if divergence is not None:
            return StepOutcome({}, votes, divergence)
        self.step_number += 1
        if not logged:
            return StepOutcome({}, votes)
        own, moments = logged
        world_size = self.collectives.world_size
        metrics = {
            "loss/total": loss_sum / world_size,
            "temperature/value": float(temperature),
            "lr": lr,
            "grad_norm": float(grad_norm),
            **mean_metrics(output.metrics, own, world_size),
            **embedding_spread(moments / world_size, features.image_BD.shape[1]),
        }
        if self.scaler.is_enabled():
            metrics |= {"scaler/scale": self.scaler.get_scale(), "scaler/num_skipped": self.num_skipped}
        return StepOutcome(metrics, votes)

    def _move(self, progress: Progress, *, is_loss_bad: bool, is_gradient_bad: bool) -> str | None:
        """Move all parameters, or let fp16 skip the step; returns the reason if training has diverged.

        All processes are told the same, and do the same.
        """
        if is_loss_bad or (is_gradient_bad and not self.scaler.is_enabled()):
            return "the loss or its gradient is not finite"
        if not is_gradient_bad:
            self.scaler.step(self.optimizer.adamw)
        self.scaler.update()
        divergence = self._count_skipped(is_skipped=is_gradient_bad)
        if divergence is None:
            self.optimizer.adamw.zero_grad(set_to_none=True)
            self.method.after_step(progress)
            if self.averaged is not None:
                self.averaged.update_parameters(self.towers)
        return divergence

    def _count_skipped(self, *, is_skipped: bool) -> str | None:
        """Count the steps that fp16 skips; returns the reason if they mean divergence."""
        if not is_skipped:
            self.num_skipped_in_a_row = 0
            return None
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        # Read only now: on a GPU, to read it is to wait.
        scale = self.scaler.get_scale()
        if scale < _MIN_LOSS_SCALE:
            return f"the loss scale of fp16 fell to {scale:g}, below {_MIN_LOSS_SCALE:g}: the gradient is not finite"
        if self.num_skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            return f"fp16 skipped {self.num_skipped_in_a_row} steps in a row: their gradients are not finite"
        return None

    def note_first_indices(self, batch: Batch) -> None:
        """Keep the positions of the first pairs of the run, in the order of all processes."""
        if len(self.first_indices) < NUM_INDICES:
            indices = self.collectives.gather(batch.index_B.to(self.device)).tolist()
            self.first_indices += indices[: NUM_INDICES - len(self.first_indices)]

    def count_replaced(self, num_replaced: int, batch: Batch) -> None:
        """Count the samples of a step that were replaced, on all processes.

        Raises:
            ValueError: On every process, if they are a larger fraction of the samples than the execution allows.
        """
        if not num_replaced:
            return
        self.num_replaced += num_replaced
        allowed = self.execution.max_replaced_fraction * max(self.samples_seen, _FEW_SAMPLES)
        if self.num_replaced > allowed:
            examples = "".join(f"\n  {text}" for text in batch.replaced[:5]) or " another process says which"
            raise ValueError(
                f"data set {self.dataset.index.name!r}: {self.num_replaced} of {self.samples_seen} samples were not "
                f"decodable; max_replaced_fraction = {self.execution.max_replaced_fraction} allows {allowed:.0f}. "
                f"Fetch these shards again and index them, or allow more. The last ones:{examples}"
            )

    # Saving and resuming ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint (first process only).

        Raises:
            DiskFullError: On every process, if there is no room for it.
        """
        full: files.DiskFullError | None = None
        with self.clock.phase("checkpoint"):
            if self.collectives.rank == 0:
                try:
                    checkpoint.save_checkpoint(paths.checkpoints(self.spec.run_id), self.step_number, self._state())
                except files.DiskFullError as error:
                    full = error
            is_full = self.collectives.broadcast(torch.tensor(float(full is not None), device=self.device))
        if is_full:
            raise full or files.DiskFullError("no room for a checkpoint: the first process says how much it needs")

    def _state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        return {
            "fingerprint": fingerprint(self.spec),
            "dataset_sha256": self.dataset.index.sha256,
            "towers": self.towers.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
            "clock": self.clock.state_dict(),
            "first_indices": self.first_indices,
            "num_replaced": self.num_replaced,
            "num_skipped": self.num_skipped,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if any; the first process chooses it for all.

        Raises:
            ValueError: If the checkpoint cannot be used, or belongs to another spec or other data.
        """
        folder = paths.checkpoints(self.spec.run_id)
        newest = checkpoint.newest_step(folder) if self.collectives.rank == 0 else None
        step = int(self.collectives.broadcast(torch.tensor(newest or 0, device=self.device)))
        if step == 0:
            return
        state = checkpoint.load_checkpoint(folder, step, keys=self._state().keys())
        if (state["fingerprint"], state["dataset_sha256"]) != (fingerprint(self.spec), self.dataset.index.sha256):
            raise ValueError(f"{folder} belongs to another spec or to other data: remove that folder")
        if self.collectives.rank == 0:
            checkpoint.remove_newer(folder, step)
        self.towers.load_state_dict(state["towers"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        # Loading copies parameters and buffers, but may keep the tensors of extra state and of AdamW.
        for key in state["method"]:
            if key.endswith("_extra_state"):
                state["method"][key] = checkpoint.copy_to(self.device, state["method"][key])
        self.method.load_state_dict(state["method"])
        self.optimizer.adamw.load_state_dict(checkpoint.copy_to(self.device, state["optimizer"]))
        self.scaler.load_state_dict(state["scaler"])
        self.clock.load_state_dict(state["clock"])
        self.step_number, self.first_indices = step, state["first_indices"]
        self.num_replaced = state["num_replaced"]
        self.num_skipped, self.num_skipped_in_a_row = state["num_skipped"], state["num_skipped_in_a_row"]
        # Copies that are no longer needed are no part of training.
        forget_peak_memory(self.device)


def _read_index(path: Path, expected: DatasetSpec) -> Index:
    """Return the index of a run's data set.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is of other data than the run wants.
    """
    if not path.exists():
        raise FileNotFoundError(f"data set {expected.name!r} has no index at {path}: run `snakemake {path}` first")
    index = read_index(path)
    found = DatasetSpec(name=index.name, revision=index.revision, pairs=index.pairs, captions=index.captions)
    if found != expected:
        raise ValueError(
            f"the index of data set {index.name!r} is of revision {found.revision} with {found.pairs} pairs and "
            f"captions in {found.captions}, the run wants revision {expected.revision} with {expected.pairs} and "
            f"captions in {expected.captions}: run `snakemake -f {path}`"
        )
    return index
