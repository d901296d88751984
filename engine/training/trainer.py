"""One training run in one process: its state, one step of it, saving and resuming. It knows no method by name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine import files, paths
from engine.data.index import read_index
from engine.data.loader import Batch, PairDataset
from engine.distributed import Collectives
from engine.method import Features, LossOutput, MethodEnv, Progress
from engine.registry import build_method
from engine.schema.base import fingerprint, parse
from engine.schema.record import Attempt, Divergence, Milestone, NormalizerError, Record
from engine.schema.run import DatasetSpec, Execution, RunSpec
from engine.signatures import find_signatures
from engine.training import checkpoint
from engine.training.diagnostics import measure_normalizer_error
from engine.training.optim import Optimizer
from engine.training.reporting import (
    MAX_METRICS,
    Clock,
    embedding_moments,
    embedding_spread,
    forget_peak_memory,
    mean_metrics,
    pack_metrics,
    parse_lines,
    peak_memory_bytes,
)
from engine.training.towers import WEIGHTS_FILE, Towers, build_towers, embed_dim, export, tokenizer

_FEW_SAMPLES = 10_000
"""A fraction of fewer samples than this says little: some broken ones may come first."""
_MAX_SKIPPED_IN_A_ROW = 20
"""So many mean divergence. Fewer may well be a run's first steps: the loss scale starts at 2^16, and each halves it."""
_MIN_LOSS_SCALE = 1.0
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Wishes(NamedTuple):
    """What one process, or after agreement any of them, asks for after a step."""

    stop: tuple[bool, ...]
    """Signals that it got, one for each of `engine.stop.SIGNALS`."""
    save: bool
    num_replaced: int
    """Samples of the step that were replaced; after agreement, of all processes together."""

    def values(self) -> list[float]:
        """Numbers whose sum over processes says what they ask for together."""
        return [float(value) for value in (*self.stop, self.save, self.num_replaced)]

    @classmethod
    def agreed(cls, sums: list[float]) -> Wishes:
        """From the sum of `values` over processes."""
        *stop, save, num_replaced = sums
        return cls(tuple(bool(value) for value in stop), bool(save), int(num_replaced))


class StepOutcome(NamedTuple):
    """What a step gave."""

    metrics: dict[str, float]
    """Means over all processes; empty if the step was not timed, or not taken."""
    agreed: Wishes
    divergence: str | None = None
    """Why training has diverged, if it has: then the step does not count."""


@dataclasses.dataclass(frozen=True)
class Differentiated(LossOutput):
    """This process's part of a loss whose gradients are there."""

    moments: Tensor | None = None
    """`embedding_moments` of this process's rows, if the step is logged."""


class Trainer:
    """A run in this process."""

    def __init__(self, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives) -> None:
        self.spec, self.execution, self.device, self.collectives = spec, execution, device, collectives
        # cuDNN would round what is called fp32 to TF32.
        torch.backends.cudnn.allow_tf32 = spec.precision != "fp32"
        self.folder = paths.run(spec.run_id)
        index_path = paths.index(spec.dataset.name)
        if not index_path.exists():
            raise FileNotFoundError(
                f"data set {spec.dataset.name!r} has no index at {index_path}: run `snakemake {index_path}` first"
            )
        index = read_index(index_path)
        found = DatasetSpec(name=index.name, revision=index.revision, pairs=index.pairs, captions=index.captions)
        if found != spec.dataset:
            raise ValueError(
                f"the index of data set {index.name!r} is of revision {found.revision} with {found.pairs} pairs and "
                f"captions in {found.captions}, the run wants revision {spec.dataset.revision} with "
                f"{spec.dataset.pairs} and captions in {spec.dataset.captions}: run `snakemake -f {index_path}`"
            )
        # Convolutions run faster with channels innermost, on CPUs and on GPUs; for other layers it changes nothing.
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
        env = MethodEnv(
            embed_dim=embed_dim(self.towers),
            dataset_size=index.pairs,
            global_batch_size=spec.global_batch_size,
            steps_per_epoch=self.steps_per_epoch,
            num_steps=spec.num_steps,
            seed=spec.seed,
            collectives=collectives,
        )
        self.method = build_method(spec.method, env).to(device)
        self.optimizer = Optimizer(self.towers, self.method, spec.optimizer, spec.num_steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        # A copy of the weights, taken before anything wraps them: process groups cannot be copied.
        decay = spec.optimizer.ema_decay
        self.averaged = (
            AveragedModel(self.towers, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
            if decay
            else None
        )
        self.batch_norm_groups = self._share_batch_norm()
        """Parts of this process's rows that batch norm sees apart."""
        self.encoder: nn.Module = torch.compile(self.towers) if execution.compile else self.towers  # type: ignore[assignment]
        if collectives.world_size > 1:
            self.encoder = DistributedDataParallel(
                self.encoder, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
        self.clock = Clock(device)
        self.step_number = 0
        self.first_indices: list[int] = []
        self.num_replaced = 0
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0

    def _share_batch_norm(self) -> int:
        """Let batch norm see the parts of the global batch that the spec says, however many processes share it.

        Returns:
            The parts of this process's rows; more than one when there are fewer processes than parts.

        Raises:
            ValueError: If that cannot be done with these processes, this device or this accumulation.
        """
        name, groups, world_size = self.spec.model.name, self.spec.batch_norm_groups, self.collectives.world_size
        if not any(isinstance(module, nn.BatchNorm2d) for module in self.towers.modules()):
            if groups > 1:
                raise ValueError(f"batch_norm_groups = {groups}, but model {name!r} has no batch norm: leave it out")
            return 1
        per_process, left = divmod(groups, world_size)
        if left and world_size % groups:
            raise ValueError(
                f"batch_norm_groups = {groups} cannot be shared among {world_size} processes: use a number of "
                "processes that divides it, or a multiple of it"
            )
        if self.execution.accumulation_steps not in {1, per_process}:
            raise ValueError(
                f"model {name!r} has batch norm, which with accumulation_steps = {self.execution.accumulation_steps} "
                f"would see other parts of the batch than batch_norm_groups = {groups} says: use accumulation_steps 1"
                + (f" or {per_process}" if per_process > 1 else ", or a model without batch norm")
            )
        if per_process:
            return per_process
        if self.device.type == "cpu":
            raise ValueError(
                f"model {name!r} has batch norm, which on CPUs cannot see one part of the batch from several processes "
                f"(batch_norm_groups = {groups}, {world_size} processes): use fewer processes, GPUs, or a model "
                "without batch norm"
            )
        group = self.collectives.subgroup(world_size // groups)
        self.towers = nn.SyncBatchNorm.convert_sync_batchnorm(self.towers, group)  # type: ignore[no-untyped-call]
        return 1

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.towers.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

    def running_statistics(self) -> list[Tensor]:
        """Buffers of the batch norms."""
        return [buffer for norm in self._norms() for buffer in norm.buffers()]

    @contextlib.contextmanager
    def _running_statistics_untouched(self) -> Iterator[None]:
        # Copies take their place: a graph from another part of the batch still needs the originals as they are.
        norms = self._norms()
        originals = [dict(norm.named_buffers()) for norm in norms]
        try:
            for norm, buffers in zip(norms, originals, strict=True):
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer.clone())
            yield
        finally:
            for norm, buffers in zip(norms, originals, strict=True):
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer)

    # One step ---------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Where training stands."""
        return Progress(self.step_number, self.steps_per_epoch, self.spec.num_steps, self.spec.global_batch_size)

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all processes."""
        return self.step_number * self.spec.global_batch_size

    def encode(self, image_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Encode this process's rows on the device, in the run's precision; embeddings come out in float32."""
        groups = self.batch_norm_groups
        parts = [
            self._encode_group(*part, is_first=number == 0)
            for number, part in enumerate(zip(image_BCHW.chunk(groups), tokens_BT.chunk(groups), strict=True))
        ]
        if groups == 1:
            return parts[0]
        return torch.cat([image for image, _ in parts]), torch.cat([text for _, text in parts])

    def _encode_group(self, image_BCHW: Tensor, tokens_BT: Tensor, *, is_first: bool) -> tuple[Tensor, Tensor]:
        """Encode rows that share their batch-norm statistics; only the first such rows enter the running ones."""
        dtype = _AUTOCAST.get(self.spec.precision)
        with (
            contextlib.nullcontext() if is_first else self._running_statistics_untouched(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            image_BD, text_BD = self.encoder(image_BCHW.contiguous(memory_format=torch.channels_last), tokens_BT)
        return image_BD, text_BD

    def backward(self, batch: Batch, *, logged: bool = False) -> Differentiated:
        """Compute the loss of a batch and its gradients.

        The method sees the whole local batch, however many parts the encoders take it in: with accumulation the parts
        are encoded once without gradient for the loss, and again for their share of it (GradCache, arXiv:2101.06983).
        """
        parts = list(
            zip(
                batch.image_BCHW.to(self.device, non_blocking=True).chunk(self.execution.accumulation_steps),
                batch.tokens_BT.to(self.device, non_blocking=True).chunk(self.execution.accumulation_steps),
                strict=True,
            )
        )
        with self.clock.phase("encoder"):
            if len(parts) == 1:
                self._seed_draws(0)
                encoded = [self.encode(*parts[0])]
            else:
                encoded = []
                for number, part in enumerate(parts):
                    self._seed_draws(number)
                    # The first of two passes must leave no trace in batch-norm statistics.
                    with torch.no_grad():
                        encoded.append(self._encode_group(*part, is_first=False))
        with self.clock.phase("method"):
            image_BD = torch.cat([image for image, _ in encoded]).detach().requires_grad_()
            text_BD = torch.cat([text for _, text in encoded]).detach().requires_grad_()
            features = Features(image_BD, text_BD, batch.index_B.to(self.device))
            output = self.method.loss(features, self.progress())
            torch.autograd.backward(self.scaler.scale(output.total))
        moments = embedding_moments(image_BD, text_BD) if logged else None
        with self.clock.phase("encoder"):
            assert image_BD.grad is not None
            assert text_BD.grad is not None
            rows = [len(image) for image, _ in encoded]
            grads = list(zip(torch.split(image_BD.grad, rows), torch.split(text_BD.grad, rows), strict=True))
            for number, (part, grad) in enumerate(zip(parts, grads, strict=True)):
                last = number == len(parts) - 1
                ddp = isinstance(self.encoder, DistributedDataParallel) and not last
                with self.encoder.no_sync() if ddp else contextlib.nullcontext():  # type: ignore[operator]
                    again = encoded[number]
                    if len(parts) > 1:
                        self._seed_draws(number)
                        again = self._encode_group(*part, is_first=number == 0)
                    torch.autograd.backward(again, grad)
        return Differentiated(output.total, output.metrics, moments)

    def _seed_draws(self, part: int) -> None:
        """Let what draws from torch's own generator (dropout) depend on the step and the part of the batch.

        Not on what came before: it draws the same after a restart, and in both passes over a part.
        """
        purpose = f"part {part} on process {self.collectives.rank}"
        seed = self.method.env.generator(purpose, self.step_number).initial_seed()
        # Not torch.manual_seed: on a CPU it spends a quarter of a millisecond on GPUs that are not in use.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(self, batch: Batch, ask: Callable[[], Wishes], *, timing: bool) -> StepOutcome:
        """Take one optimiser step, and agree with the other processes on what comes after it.

        What this process wishes is asked as late as possible, so that a signal is obeyed after the step it fell into.
        If the loss or its gradient was not finite on some process, no parameter has moved on any, though the method
        may have updated its own running state. In fp16 a gradient that is not finite skips the step, until it has done
        so too often.

        Raises:
            ValueError: On every process, if they logged different metrics, or too many.
        """
        progress = self.progress()
        lr = self.optimizer.set_learning_rates(progress.step)
        temperature = 1 / self.method.logit_scale.detach()
        output = self.backward(batch, logged=timing)
        with self.clock.phase("optimizer"):
            for parameter in self.optimizer.method_parameters:
                if parameter.grad is not None:
                    self.collectives.all_reduce(parameter.grad, "mean")
            self.scaler.unscale_(self.optimizer.adamw)
            grad_norm = self.optimizer.clip_gradients()
            loss = output.total.detach()
            # One collective, and on a GPU one wait, for all that the processes must agree on.
            flags = torch.stack([loss, ~torch.isfinite(loss), ~torch.isfinite(grad_norm)]).double()
            parts = [flags, torch.tensor(ask().values(), device=self.device, dtype=torch.float64)]
            num_agreed = sum(map(len, parts))
            if output.moments is not None:
                parts += [pack_metrics(output.metrics, self.device), output.moments.double().flatten()]
            sums = self.collectives.all_reduce(torch.cat(parts), "sum")
            loss_sum, bad_losses, bad_gradients, *asked = sums[:num_agreed].tolist()
            wishes = Wishes.agreed(asked)
            if bad_losses or (bad_gradients and not self.scaler.is_enabled()):
                return StepOutcome({}, wishes, "the loss or its gradient is not finite")
            if not bad_gradients:
                self.scaler.step(self.optimizer.adamw)
            self.scaler.update()
            divergence = self._count_skipped(is_skipped=bool(bad_gradients))
            if divergence is not None:
                return StepOutcome({}, wishes, divergence)
            self.optimizer.adamw.zero_grad(set_to_none=True)
            self.method.after_step(progress)
            if self.averaged is not None:
                self.averaged.update_parameters(self.towers)
        self.step_number += 1
        if output.moments is None:
            return StepOutcome({}, wishes)
        world_size = self.collectives.world_size
        own, moments = torch.split(sums[num_agreed:], [2 + MAX_METRICS, output.moments.numel()])
        metrics = {
            "loss/total": loss_sum / world_size,
            "temperature/value": float(temperature),
            "lr": lr,
            "grad_norm": float(grad_norm),
            **mean_metrics(output.metrics, own, world_size),
            **embedding_spread(moments.view_as(output.moments) / world_size),
        }
        if self.scaler.is_enabled():
            metrics |= {"scaler/scale": self.scaler.get_scale(), "scaler/num_skipped": self.num_skipped}
        return StepOutcome(metrics, wishes)

    def _count_skipped(self, *, is_skipped: bool) -> str | None:
        """Note whether fp16 has skipped a step, alike on all processes; returns why training has diverged, if so."""
        if not is_skipped:
            self.num_skipped_in_a_row = 0
            return None
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        # Only here: on a GPU, to read it is to wait.
        scale = self.scaler.get_scale()
        if scale < _MIN_LOSS_SCALE:
            return f"the loss scale of fp16 fell to {scale:g}, below {_MIN_LOSS_SCALE:g}: the gradient is not finite"
        if self.num_skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            return f"fp16 skipped {self.num_skipped_in_a_row} steps in a row: their gradients are not finite"
        return None

    def count_replaced(self, num_replaced: int, batch: Batch) -> None:
        """Add what a step replaced, over all processes.

        Raises:
            ValueError: On every process, if it is more than the execution allows of what was seen.
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
        """All that a checkpoint holds."""
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
        """Go on from the newest checkpoint that verifies, if there is one; the first process chooses it for all."""
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
        # Parameters and buffers are copied; extra state and AdamW's may be kept as they are given.
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
        # What was copied and is not needed any more is no part of training.
        forget_peak_memory(self.device)

    def export_weights(self) -> None:
        """Write the model of a milestone (first process only)."""
        if self.collectives.rank == 0:
            folder = paths.weights(self.spec.run_id, self.samples_seen)
            scale, bias = self.method.logit_scale, self.method.logit_bias
            towers = self.towers if self.averaged is None else cast(Towers, self.averaged.module)
            export(towers, self.spec.model.name, folder, logit_scale=scale, logit_bias=bias)

    @property
    def is_measurement_due(self) -> bool:
        """Whether the error of the log-normalizers is measured after the last step."""
        return self.spec.normalizer_error is not None and self.samples_seen in self.spec.normalizer_error.at

    def is_measurement_missing(self) -> bool:
        """Whether it is due and not written down, as after a resume from where it was given up."""
        path = paths.normalizer_error(self.spec.run_id, self.samples_seen)
        # The first process writes it; others may not see it yet.
        is_there = self.collectives.broadcast(torch.tensor(float(path.exists()), device=self.device))
        return self.is_measurement_due and not is_there

    def measure_normalizers(self, signals: Sequence[bool]) -> tuple[bool, ...]:
        """Compare the method's log-normalizers with the exact ones after the last step, and write it down.

        Given up once any process gets a signal: it takes long, and is the same when it is made again.

        Args:
            signals: Those that this process got, kept up to date; one for each of `engine.stop.SIGNALS`.

        Returns:
            Signals that any process got and that ended the measurement; none if it was made.
        """
        assert self.spec.normalizer_error is not None
        path = paths.normalizer_error(self.spec.run_id, self.samples_seen)
        if self.collectives.rank == 0:
            path.unlink(missing_ok=True)  # of an attempt that went back to before it
        agreed = [0.0] * len(signals)

        def is_over() -> bool:
            nonlocal agreed
            mine = torch.tensor(signals, device=self.device, dtype=torch.float32)
            agreed = self.collectives.all_reduce(mine, "sum").tolist()
            return any(agreed)

        self._seed_draws(0)
        if self.spec.batch_norm_groups > 1:
            # Running statistics are those of the first process.
            for buffer in self.running_statistics():
                self.collectives.broadcast(buffer)
        with self.clock.phase("diagnostics"):
            measured = measure_normalizer_error(
                self.spec.normalizer_error,
                towers=self.towers,
                encode=self.encode,
                dataset=self.dataset,
                method=self.method,
                progress=dataclasses.replace(self.progress(), step=self.step_number - 1),
                global_batch_size=self.spec.global_batch_size,
                seed=self.spec.seed,
                device=self.device,
                num_workers=self.execution.num_workers,
                is_over=is_over,
            )
        if measured is not None and self.collectives.rank == 0:
            sample = paths.log_normalizers(self.spec.run_id, self.samples_seen)
            with files.atomic_write(sample, num_bytes=len(measured.sample)) as temporary:
                temporary.write_bytes(measured.sample)
            files.write_text(path, measured.error.model_dump_json() + "\n")
        return tuple(map(bool, agreed))

    def record(self, divergence: Divergence | None) -> Record:
        """Describe what came out."""
        run_id, reached = self.spec.run_id, self.samples_seen
        weights = {n: paths.weights(run_id, n) / WEIGHTS_FILE for n in self.spec.milestones if n <= reached}
        measured = self.spec.normalizer_error.at if self.spec.normalizer_error else ()
        errors = [files.read_text(paths.normalizer_error(run_id, n)) for n in measured if n <= reached]
        log = paths.metrics(run_id)
        logged = parse_lines(log, log.read_bytes().splitlines())
        return Record(
            run_id=run_id,
            fingerprint=fingerprint(self.spec),
            spec=self.spec,
            status="diverged" if divergence else "finished",
            samples_seen=reached,
            milestones={
                str(n): Milestone(weights=str(path.relative_to(self.folder)), sha256=files.file_sha256(path))
                for n, path in weights.items()
            },
            normalizer_error=tuple(NormalizerError.model_validate_json(error) for error in errors),
            clock_sec={name: round(sec, 6) for name, sec in sorted(self.clock.total_sec.items())},
            median_step_sec=self.clock.median_step_sec,
            peak_memory_bytes=peak_memory_bytes(self.device),
            attempts=read_attempts(run_id),
            num_replaced=self.num_replaced,
            num_skipped=self.num_skipped,
            loss_scale=self.scaler.get_scale() if self.scaler.is_enabled() else None,
            first_indices=tuple(self.first_indices),
            divergence=divergence,
            signatures=find_signatures(logged, self.method.signatures),
        )


def read_attempts(run_id: str) -> tuple[Attempt, ...]:
    """Return every start of a run so far, in order."""
    path = paths.attempts(run_id)
    lines = files.read_text(path).splitlines() if path.exists() else []
    return tuple(parse(Attempt, line, str(path)) for line in lines)
