"""Hold the state of a run in one process: take a step, save, resume. No method is known by name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import paths
from engine.data import order
from engine.data.index import Index, read_index
from engine.data.loader import Batch, PairDataset
from engine.distributed import Collectives
from engine.method import Features, LossOutput, MethodEnv, Progress, wrong_form
from engine.registry import build_method
from engine.schema.base import fingerprint
from engine.schema.record import Divergence
from engine.schema.run import DatasetSpec, Execution, RunSpec
from engine.training import checkpoint
from engine.training.agreement import Agreement, Told, Votes
from engine.training.encoder import Encoder
from engine.training.optim import Average, Optimizer
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


class StepOutcome(NamedTuple):
    """Metrics of a step, and what follows it."""

    metrics: dict[str, float]
    """Means over all processes; empty if not wanted, or if the step does not count."""
    votes: Votes
    """Sums over all processes, of the steps that were read: this one, the one before, or both."""
    divergence: Divergence | None = None
    """The step at which training has diverged, this one or the one before: it does not count, nor does one after it."""


class DivergedError(Exception):
    """The step before has diverged."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence.reason)
        self.divergence = divergence


class Trainer:
    """The state of a run in this process, and the steps that move it."""

    def __init__(self, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives) -> None:
        self.spec, self.execution, self.device, self.collectives = spec, execution, device, collectives
        # cuDNN would round fp32 to TF32.
        torch.backends.cudnn.allow_tf32 = spec.precision != "fp32"
        torch.backends.cudnn.benchmark = execution.cudnn_benchmark
        index_path = paths.index(spec.dataset.name)
        index = _read_index(index_path, spec.dataset)
        introduce(spec.model)
        self.towers = build_towers(spec.model.name, seed=spec.seed)
        # With channels innermost, convolutions are faster on CPUs and on GPUs; other layers do not change.
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
        if execution.method_graphs and (device.type != "cuda" or collectives.world_size > 1):
            raise ValueError(
                f"method_graphs: {collectives.world_size} processes on {device.type}; allowed is one process on a GPU: "
                "leave it out"
            )
        env = MethodEnv.of(spec, embed_dim(spec.model.name), collectives, makes_graphs=execution.method_graphs)
        self.method = build_method(spec.method, env).to(device)
        self.optimizer = Optimizer(self.towers, self.method, spec.optimizer, spec.num_steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.averaged: Average | None = None
        if spec.optimizer.ema_decay:
            # Copied before the encoder shares batch norms: process groups cannot be copied.
            self.averaged = Average(self.towers, spec.optimizer.ema_decay)
        self.encoder = Encoder(self.towers, spec, execution, device, collectives)
        self.extra_shares: NDArray[np.int64] | None = None
        """By process, the numbers of the extra pairs that it encodes; None for a method that wants none."""
        if self.method.num_extra_pairs:
            self.extra_shares = order.extra_shares(
                self.method.num_extra_pairs,
                collectives.world_size,
                global_batch_size=spec.global_batch_size,
                batch_norm_groups=self.encoder.batch_norm_groups,
            )
            # Several processes may encode the same pair.
            self._extra_rows_K = torch.from_numpy(np.unique(self.extra_shares, return_index=True)[1]).to(device)
        self.clock = Clock(device)
        self.step_number = 0
        self.first_indices: list[int] = []
        self.num_replaced = 0
        self._has_looked = False
        self.agreement = Agreement(collectives, device)
        self._told: Told | None = None
        self._votes, self._last_replaced = Votes(), tuple[str, ...]()

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

        Raises:
            DivergedError: If the step before has diverged: the method does not see this batch.
        """
        batch = batch.to(self.device)
        num_parts = self.execution.accumulation_steps
        parts = list(zip(batch.image_BCHW.chunk(num_parts), batch.tokens_BT.chunk(num_parts), strict=True))
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
        divergence = self.settle()
        if divergence is not None:
            raise DivergedError(divergence)
        with self.clock.phase("method"), self._method_precision():
            image_BD, text_BD = (torch.cat(side).detach().requires_grad_() for side in zip(*encoded, strict=True))
            features = Features(image_BD, text_BD, batch.index_B, extra)
            output = self.method.loss(features, self.progress())
            if wrong := wrong_form(output):
                raise ValueError(f"{self.spec.method.name}: {wrong}")
            torch.autograd.backward(self.scaler.scale(output.total))
        if not self._has_looked or image_BD.grad is None or text_BD.grad is None:
            self._has_looked = True
            if found := self.method.without_gradient_or_training(features):
                raise ValueError("\n".join(f"{self.spec.method.name}: {each}" for each in found))
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

    @contextlib.contextmanager
    def _method_precision(self) -> Iterator[None]:
        """Multiply matrices on a GPU within the block as the run wants it of the method, and otherwise as before."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.spec.method_tf32
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def encode_extra(self, extra: Batch) -> Features:
        """Encode this process's share of the pairs beyond the batch; return all of them, in order, without gradient.

        Batch norm sees them in parts as large as the batch's, and keeps no trace of them.
        """
        extra = extra.to(self.device)
        image_BD, text_BD = self.encoder.encode_detached(extra.image_BCHW, extra.tokens_BT)
        image_KD, text_KD, index_K = (
            self.collectives.gather(ours)[self._extra_rows_K] for ours in (image_BD, text_BD, extra.index_B)
        )
        return Features(image_KD, text_KD, index_K)

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

    def step(self, batch: Batch, vote: Callable[[], Votes] = Votes, *, wants_metrics: bool) -> StepOutcome:
        """Take one optimiser step, and agree with the other processes on what comes after it.

        If the loss or its gradient is not finite on some process, no parameter moves on any, though the method may have
        updated its own state. In fp16 such a gradient skips the step; too many skipped steps are divergence.

        A GPU decides that by itself. What the step has told is read once it is needed: before metrics, a milestone or a
        measurement, and otherwise in the next step. A vote that is read then is obeyed after that step, which is read
        as well.

        Args:
            batch: This process's rows.
            vote: Returns this process's votes; called late, so that a signal counts for the step it arrived in.
            wants_metrics: Return metrics; on a GPU this waits for the step.

        Raises:
            ValueError: On every process, if they logged different metrics, or too many.
        """
        progress = self.progress()
        # Before the step moves it, and only for metrics: a mean of many temperatures may be much work.
        temperature = 1 / self.method.logit_scale.detach() if wants_metrics else None
        try:
            output, features = self.backward(batch)
        except DivergedError as error:
            return StepOutcome({}, Votes(), error.divergence)
        self._note_first_indices(batch)
        self._last_replaced = batch.replaced or self._last_replaced
        lr = self.optimizer.set_learning_rates(progress.step)
        with self.clock.phase("optimizer"):
            for parameter in self.optimizer.method_parameters:
                if parameter.grad is not None:
                    self.collectives.all_reduce(parameter.grad, "mean")
            self.scaler.unscale_(self.optimizer.adamw)
            grad_norm = self.optimizer.clip_gradients()
            logged, own = [], []
            if temperature is not None:
                logged = [
                    pack_metrics(output.metrics, self.device),
                    embedding_moments(features.image_BD, features.text_BD),
                ]
                own = [temperature, grad_norm]
            is_bad = self.agreement.add_up(
                progress.step, batch.index_B, output.total.detach(), grad_norm, vote(), logged, own
            )
            self._move_parameters(progress, is_bad=is_bad)
            self.step_number += 1
            is_wanted = wants_metrics or self._votes != Votes() or self._is_due() or not self.agreement.reads_late
            divergence = self.settle() if is_wanted else None
        votes, self._votes = self._votes, Votes()
        if divergence is not None or not wants_metrics:
            return StepOutcome({}, votes, divergence)
        assert self._told is not None
        world_size = self.collectives.world_size
        sums, moments, values = torch.split(self._told.rest, [*map(len, logged), len(own)])
        metrics = {
            "loss/total": self._told.loss / world_size,
            "temperature/value": float(values[0]),
            "lr": lr,
            "grad_norm": float(values[1]),
            **mean_metrics(output.metrics, sums, world_size),
            **embedding_spread(moments / world_size, features.image_BD.shape[1]),
        }
        if self.scaler.is_enabled():
            metrics |= {"scaler/scale": self.scaler.get_scale(), "scaler/num_skipped": self.agreement.num_skipped}
        return StepOutcome(metrics, votes)

    def settle(self) -> Divergence | None:
        """Read what the last step has told, for which a GPU may still be working; returns it if it is divergence.

        Every process does this together. A step that diverged does not count.
        """
        told = self.agreement.read(self.scaler)
        if told is None:
            return None
        self._told, self._votes = told, self._votes.and_of(told.votes)
        if told.divergence is None:
            return None
        self.step_number = told.step
        scale = float(self.method.logit_scale.detach())
        return Divergence(
            step=told.step,
            reason=told.divergence,
            temperature=1 / scale if scale and math.isfinite(scale) else None,
            indices=tuple(told.index_B[:NUM_INDICES].tolist()),
        )

    def _is_due(self) -> bool:
        """Tell if a milestone or a measurement is due after the last step."""
        due = (self.spec.milestones, *(spec.at for spec in self.spec.measurements.values()))
        return any(self.samples_seen in at for at in due)

    def _move_parameters(self, progress: Progress, *, is_bad: Tensor) -> None:
        """Move all parameters unless the step is bad: a flag on the device, equal on all processes."""
        adamw = self.optimizer.adamw
        adamw.found_inf = is_bad.float()  # type: ignore[attr-defined]
        adamw.step()
        self.scaler.update()
        adamw.zero_grad(set_to_none=True)
        with self._method_precision():
            self.method.after_step(progress)
        if self.averaged is not None:
            self.averaged.update_parameters(self.towers)

    def _note_first_indices(self, batch: Batch) -> None:
        """Keep the positions of the first pairs of the run, in the order of all processes."""
        if len(self.first_indices) < NUM_INDICES:
            indices = self.collectives.gather(batch.index_B.cpu()).tolist()
            self.first_indices += indices[: NUM_INDICES - len(self.first_indices)]

    def count_replaced(self, num_replaced: int) -> None:
        """Count the samples of steps that were read which were replaced, on all processes.

        Raises:
            ValueError: On every process, if they are a larger fraction of the run's samples than the execution allows.
        """
        if not num_replaced:
            return
        self.num_replaced += num_replaced
        allowed = self.execution.max_replaced_fraction * self.spec.samples_seen
        if self.num_replaced > allowed:
            examples = "".join(f"\n  {text}" for text in self._last_replaced[:5]) or " another process says which"
            raise ValueError(
                f"data set {self.dataset.index.name!r}: {self.num_replaced} of {self.samples_seen} samples were not "
                f"decodable; max_replaced_fraction = {self.execution.max_replaced_fraction} allows {int(allowed)} of "
                f"the run's {self.spec.samples_seen}. "
                f"Fetch these shards again and index them, or allow more. The last ones:{examples}"
            )

    # Saving and resuming ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint. Every process calls this.

        Raises:
            DiskFullError: On every process, if there is no room for it.
        """
        assert self.agreement.is_read, "settle first: a step that diverged is not to be saved"
        self.method.complete_state()
        state = self._state() if self.collectives.rank == 0 else self._own_state()
        with self.clock.phase("checkpoint"):
            checkpoint.save_checkpoint(paths.checkpoints(self.spec.run_id), self.step_number, state, self.collectives)

    def _own_state(self) -> dict[str, Any]:
        """Return the method's buffers that are this process's alone."""
        is_shared_out = self.method.env.shares.count > 1
        return {name: self.method.get_buffer(name) for name in self.method.pair_buffers if is_shared_out}

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
            "num_skipped": self.agreement.num_skipped,
            "num_skipped_in_a_row": self.agreement.num_skipped_in_a_row,
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if any; the first process chooses it for all.

        Raises:
            ValueError: If the checkpoint cannot be used, or belongs to another spec or other data.
        """
        folder = paths.checkpoints(self.spec.run_id)
        newest = checkpoint.newest_step(folder) if self.collectives.rank == 0 else None
        step = int(self.collectives.broadcast(torch.tensor(newest or 0, device=self.device)))
        if self.collectives.rank == 0:
            checkpoint.remove_newer(folder, step)
        if step == 0:
            return
        state = checkpoint.load_checkpoint(folder, step, keys=self._state().keys())
        if (state["fingerprint"], state["dataset_sha256"]) != (fingerprint(self.spec), self.dataset.index.sha256):
            raise ValueError(f"{folder} belongs to another spec or to other data: remove that folder")
        parts = checkpoint.load_parts(folder, step)
        with checkpoint.of_this_run(folder, step):
            self._take_over(state, parts)
        self.step_number = step
        # Copies that are no longer needed are no part of training.
        forget_peak_memory(self.device)

    def _take_over(self, state: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        """Go on from what a checkpoint holds, and from what each process after the first kept of its own."""
        self.towers.load_state_dict(state["towers"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        # Loading copies parameters and buffers, but may keep the tensors of extra state and of AdamW.
        for key in state["method"]:
            if key.endswith("_extra_state"):
                state["method"][key] = checkpoint.copy_to(self.device, state["method"][key])
        all_parts = [state["method"], *parts]
        for name in self.method.pair_buffers:
            buffer_N = self.method.get_buffer(name)
            self.method.env.shares.restore(buffer_N, [part[name] for part in all_parts])
            state["method"][name] = buffer_N
        self.method.load_state_dict(state["method"])
        self.optimizer.adamw.load_state_dict(checkpoint.copy_to(self.device, state["optimizer"]))
        self.scaler.load_state_dict(state["scaler"])
        self.clock.load_state_dict(state["clock"])
        self.first_indices = state["first_indices"]
        self.num_replaced = state["num_replaced"]
        self.agreement.num_skipped = state["num_skipped"]
        self.agreement.num_skipped_in_a_row = state["num_skipped_in_a_row"]


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
