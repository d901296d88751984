"""Train one run from its spec: the loop that every method shares. It knows no method by name.

By hand: ``python -m engine.train results/runs/<run_id>/spec.json``, also under ``torchrun``. A run that was stopped
goes on from its newest checkpoint and ends with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine import checkpoint, distributed, paths
from engine.data import Batch, PairDataset, build_loader
from engine.diagnostics import measure_normalizer_error
from engine.distributed import Collectives
from engine.index import read_index
from engine.method import Features, LossOutput, MethodEnv, Progress
from engine.metrics import Clock, Reporter, peak_memory_bytes
from engine.optim import Optimizer
from engine.provenance import provenance
from engine.record import Attempt, Divergence, Milestone, NormalizerError, Record
from engine.registry import method_class, resolve_config
from engine.spec import DatasetSpec, Execution, RunSpec, fingerprint, parse
from engine.towers import WEIGHTS_FILE, build_towers, embed_dim, export, tokenizer

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_INDICES = 100


class Trainer:
    """One training run in this process: its state, one step, saving and resuming."""

    def __init__(self, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives) -> None:
        self.spec, self.execution, self.device, self.collectives = spec, execution, device, collectives
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
        self.dataset = PairDataset(
            index,
            index_path,
            image_size=self.towers.image_size,
            tokenizer=tokenizer(spec.model.name),
            augmentation=spec.augmentation,
            seed=spec.seed,
            cache_bytes=int(execution.cache_gib * 2**30) if execution.cache_decoded else 0,
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
        config = resolve_config(spec.method.name, dict(spec.method.config))
        self.method = method_class(spec.method.name)(config, env).to(device)
        self.optimizer = Optimizer(self.towers, self.method, spec.optimizer, spec.num_steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self._share_batch_norm()
        self.encoder: nn.Module = torch.compile(self.towers) if execution.compile else self.towers  # type: ignore[assignment]
        if collectives.world_size > 1:
            self.encoder = DistributedDataParallel(
                self.encoder, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
        self.clock = Clock(device)
        self.step_number = 0
        self.first_indices: list[int] = []

    def _share_batch_norm(self) -> None:
        """Let batch norm see the global batch, so that no result depends on how many processes share it.

        Raises:
            ValueError: If that cannot be done: with accumulation, or in several processes on a CPU.
        """
        if not any(isinstance(module, nn.BatchNorm2d) for module in self.towers.modules()):
            return
        if self.execution.accumulation_steps > 1:
            raise ValueError(
                f"model {self.spec.model.name!r} has batch norm, which would see a part of the batch at a time: "
                "use accumulation_steps 1, or a model without batch norm"
            )
        if self.collectives.world_size > 1:
            if self.device.type == "cpu":
                raise ValueError(
                    f"model {self.spec.model.name!r} has batch norm, which cannot see the whole batch in "
                    f"{self.collectives.world_size} CPU processes: use one process, GPUs, or a model without batch norm"
                )
            self.towers = nn.SyncBatchNorm.convert_sync_batchnorm(self.towers)  # type: ignore[no-untyped-call]

    # One step ---------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Where training stands."""
        return Progress(self.step_number, self.steps_per_epoch, self.spec.num_steps, self.spec.global_batch_size)

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all processes."""
        return self.step_number * self.spec.global_batch_size

    def encode(self, image_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Encode on the device, in the run's precision; embeddings come out in float32."""
        dtype = _AUTOCAST.get(self.spec.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            image_BD, text_BD = self.encoder(image_BCHW.contiguous(memory_format=torch.channels_last), tokens_BT)
        return image_BD, text_BD

    def backward(self, batch: Batch) -> LossOutput:
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
                encoded = [self.encode(*parts[0])]
            else:
                # The first of two passes must leave no trace in batch-norm statistics.
                buffers = [buffer.clone() for buffer in self.towers.buffers()]
                with torch.no_grad():
                    encoded = [self.encode(*part) for part in parts]
                    for buffer, before in zip(self.towers.buffers(), buffers, strict=True):
                        buffer.copy_(before)
        with self.clock.phase("method"):
            image_BD = torch.cat([image for image, _ in encoded]).detach().requires_grad_()
            text_BD = torch.cat([text for _, text in encoded]).detach().requires_grad_()
            features = Features(image_BD, text_BD, batch.index_B.to(self.device))
            output = self.method.loss(features, self.progress())
            torch.autograd.backward(self.scaler.scale(output.total))
        with self.clock.phase("encoder"):
            assert image_BD.grad is not None
            assert text_BD.grad is not None
            rows = [len(image) for image, _ in encoded]
            grads = list(zip(torch.split(image_BD.grad, rows), torch.split(text_BD.grad, rows), strict=True))
            for number, (part, grad) in enumerate(zip(parts, grads, strict=True)):
                last = number == len(parts) - 1
                ddp = isinstance(self.encoder, DistributedDataParallel) and not last
                with self.encoder.no_sync() if ddp else contextlib.nullcontext():  # type: ignore[operator]
                    torch.autograd.backward(encoded[0] if len(parts) == 1 else self.encode(*part), grad)
        return output

    def step(self, batch: Batch, *, timing: bool) -> dict[str, Any] | None:
        """Take one optimiser step; returns its metrics, or None if it was not finite and nothing was changed."""
        progress = self.progress()
        # Whatever draws from torch's own generator (dropout) then depends on the step, not on what came before.
        torch.manual_seed(self.method.env.generator(f"step on process {self.collectives.rank}", progress.step).seed())
        lr = self.optimizer.set_learning_rates(progress.step)
        temperature = 1 / self.method.logit_scale.detach()
        output = self.backward(batch)
        with self.clock.phase("optimizer"):
            for parameter in self.optimizer.method_parameters:
                if parameter.grad is not None:
                    self.collectives.all_reduce(parameter.grad, "mean")
            self.scaler.unscale_(self.optimizer.adamw)
            grad_norm = nn.utils.clip_grad_norm_(
                self.optimizer.parameters, self.spec.optimizer.grad_clip_norm or math.inf, foreach=True
            )
            loss = self.collectives.all_reduce(output.total.detach().clone(), "mean")
            # A fp16 overflow of the gradients is the scaler's business: it skips the step and halves its scale.
            finite = torch.isfinite(loss) & (torch.isfinite(grad_norm) | self.scaler.is_enabled())
            if not bool(self.collectives.all_reduce(finite.float(), "min")):
                return None
            self.scaler.step(self.optimizer.adamw)
            self.scaler.update()
            self.optimizer.adamw.zero_grad(set_to_none=True)
            self.method.after_step(progress)
        self.step_number += 1
        if not timing:
            return {}
        metrics = {name: float(value) for name, value in output.metrics.items()}
        return {
            "loss/total": float(loss),
            "temperature/value": float(temperature),
            "lr": lr,
            "grad_norm": float(grad_norm),
            **metrics,
        }

    # Saving and resuming ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint (first process only)."""
        with self.clock.phase("checkpoint"):
            if self.collectives.rank == 0:
                state = {
                    "fingerprint": fingerprint(self.spec),
                    "dataset_sha256": self.dataset.index.sha256,
                    "towers": self.towers.state_dict(),
                    "method": self.method.state_dict(),
                    "optimizer": self.optimizer.adamw.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "clock": self.clock.state_dict(),
                    "first_indices": self.first_indices,
                }
                checkpoint.save_checkpoint(paths.checkpoints(self.spec.run_id), self.step_number, state)
            self.collectives.barrier()

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if there is one; the first process chooses it for all."""
        folder = paths.checkpoints(self.spec.run_id)
        newest = checkpoint.newest_step(folder) if self.collectives.rank == 0 else None
        step = int(self.collectives.broadcast(torch.tensor(newest or 0, device=self.device)))
        if step == 0:
            return
        state = checkpoint.load_checkpoint(folder, step, self.device)
        if (state["fingerprint"], state["dataset_sha256"]) != (fingerprint(self.spec), self.dataset.index.sha256):
            raise ValueError(f"{folder} belongs to another spec or to other data: remove that folder")
        self.towers.load_state_dict(state["towers"])
        self.method.load_state_dict(state["method"])
        self.optimizer.adamw.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.clock.load_state_dict(state["clock"])
        self.step_number, self.first_indices = step, state["first_indices"]

    def export_weights(self) -> None:
        """Write the model of a milestone (first process only)."""
        if self.collectives.rank == 0:
            folder = paths.weights(self.spec.run_id, self.samples_seen)
            scale, bias = self.method.logit_scale, self.method.logit_bias
            export(self.towers, self.spec.model.name, folder, logit_scale=scale, logit_bias=bias)

    def measure_normalizers(self, progress: Progress) -> None:
        """Compare the method's log-normalizers with the exact ones after the step of `progress`, and write it down."""
        assert self.spec.normalizer_error is not None
        with self.clock.phase("diagnostics"):
            error = measure_normalizer_error(
                self.spec.normalizer_error,
                towers=self.towers,
                encode=self.encode,
                dataset=self.dataset,
                method=self.method,
                progress=progress,
                global_batch_size=self.spec.global_batch_size,
                seed=self.spec.seed,
                device=self.device,
            )
        if self.collectives.rank == 0:
            path = paths.normalizer_error(self.spec.run_id, self.samples_seen)
            paths.write_text(path, error.model_dump_json() + "\n")

    def record(self, divergence: Divergence | None) -> Record:
        """Describe what came out."""
        run_id, reached = self.spec.run_id, self.samples_seen
        weights = {n: paths.weights(run_id, n) / WEIGHTS_FILE for n in self.spec.milestones if n <= reached}
        measured = self.spec.normalizer_error.at if self.spec.normalizer_error else ()
        errors = [paths.normalizer_error(run_id, n).read_text(encoding="utf-8") for n in measured if n <= reached]
        return Record(
            run_id=run_id,
            fingerprint=fingerprint(self.spec),
            spec=self.spec,
            status="diverged" if divergence else "finished",
            samples_seen=reached,
            milestones={
                str(n): Milestone(weights=str(path.relative_to(self.folder)), sha256=paths.file_sha256(path))
                for n, path in weights.items()
            },
            normalizer_error=tuple(NormalizerError.model_validate_json(error) for error in errors),
            clock_sec={name: round(sec, 6) for name, sec in sorted(self.clock.total_sec.items())},
            median_step_sec=self.clock.median_step_sec,
            peak_memory_bytes=peak_memory_bytes(self.device),
            attempts=read_attempts(run_id),
            first_indices=tuple(self.first_indices),
            divergence=divergence,
        )


def train(spec: RunSpec, execution: Execution) -> Record:
    """Train a run to its end in this process (one of several under `torchrun`), and write its record.

    Returns at once if the run is done already, and waits while another job is at it: a run is never trained twice.
    """
    device = distributed.choose_device(execution.device)
    torch.set_num_threads(execution.threads)
    collectives = distributed.start(device)
    with _only_trainer(spec.run_id) if collectives.rank == 0 else contextlib.nullcontext():
        done = torch.tensor(float(paths.record(spec.run_id).exists()), device=device)
        if not collectives.broadcast(done):
            _train(Trainer(spec, execution, device, collectives))
        elif collectives.rank == 0:
            checkpoint.remove_checkpoints(paths.checkpoints(spec.run_id))
    path = paths.record(spec.run_id)
    return parse(Record, path.read_text(encoding="utf-8"), str(path))


@contextlib.contextmanager
def _only_trainer(run_id: str) -> Iterator[None]:
    path = paths.run(run_id) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(trainer: Trainer) -> None:
    spec, execution, device, collectives = trainer.spec, trainer.execution, trainer.device, trainer.collectives
    run_id = spec.run_id
    trainer.resume()
    first = trainer.step_number
    is_first_process = collectives.rank == 0
    if is_first_process:
        origin = provenance(
            dataset_sha256=trainer.dataset.index.sha256, device=device, world_size=collectives.world_size
        )
        attempts = (*read_attempts(run_id), Attempt(first_step=first, provenance=origin))
        paths.write_text(paths.attempts(run_id), "".join(f"{attempt.model_dump_json()}\n" for attempt in attempts))
    reporter = Reporter(paths.metrics(run_id) if is_first_process else None, run_id, spec.num_steps, first)
    loader = build_loader(
        trainer.dataset,
        seed=spec.seed,
        global_batch_size=spec.global_batch_size,
        steps=range(first, spec.num_steps),
        rank=collectives.rank,
        world_size=collectives.world_size,
        num_workers=execution.num_workers,
    )
    batches = iter(loader)
    divergence: Divergence | None = None
    last_save = time.monotonic()
    for step in range(first, spec.num_steps):
        logged = (step + 1) % execution.log_every_steps == 0 or step + 1 == spec.num_steps
        trainer.clock.start_step(timing=logged)
        with trainer.clock.phase("data"):
            batch = next(batches)
        if len(trainer.first_indices) < _FIRST_INDICES:
            indices = collectives.gather(batch.index_B.to(device)).tolist()
            trainer.first_indices += indices[: _FIRST_INDICES - len(trainer.first_indices)]
        progress = trainer.progress()
        metrics = trainer.step(batch, timing=logged)
        if metrics is None:
            divergence = Divergence(
                step=step,
                reason="the loss or its gradient is not finite",
                temperature=1 / float(trainer.method.logit_scale),
                indices=tuple(batch.index_B[:_FIRST_INDICES].tolist()),
            )
            break
        times = trainer.clock.end_step()
        place = {"step": step + 1, "samples_seen": trainer.samples_seen, "epoch": progress.epoch}
        reporter.step(step + 1, {**place, **metrics, **times} if logged else None)
        if trainer.samples_seen in spec.milestones:
            trainer.export_weights()
        if spec.normalizer_error is not None and trainer.samples_seen in spec.normalizer_error.at:
            trainer.measure_normalizers(progress)
        if step + 1 < spec.num_steps and _is_time_to_save(last_save, execution, collectives, device):
            trainer.save()
            last_save = time.monotonic()
    reporter.close()
    if is_first_process:
        record = trainer.record(divergence)
        paths.write_text(paths.record(run_id), record.model_dump_json(indent=1) + "\n")
        checkpoint.remove_checkpoints(paths.checkpoints(run_id))
    collectives.barrier()


def read_attempts(run_id: str) -> tuple[Attempt, ...]:
    """Return every start of a run so far, in order."""
    path = paths.attempts(run_id)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return tuple(parse(Attempt, line, str(path)) for line in lines)


def _is_time_to_save(last_save: float, execution: Execution, collectives: Collectives, device: torch.device) -> bool:
    """Let the first process's clock decide for all."""
    due = time.monotonic() - last_save >= 60 * execution.save_every_min
    if collectives.world_size == 1:
        return due
    return bool(collectives.broadcast(torch.tensor([float(due)], device=device)).item())


def read_spec(path: Path) -> RunSpec:
    """Load a run's spec and check that it lies in the folder of its own id.

    Raises:
        ValueError: If the file is no valid spec, or its content was changed by hand.
    """
    spec = parse(RunSpec, path.read_text(encoding="utf-8"), str(path))
    if path.parent.name != spec.run_id:
        raise ValueError(
            f"{path}: its content belongs to run {spec.run_id}. A spec is never edited: change the suite instead"
        )
    return spec


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.train", description=__doc__)
    parser.add_argument("spec", type=Path, help="spec.json of the run")
    parser.add_argument("--execution", default="{}", help='execution settings as JSON, e.g. \'{"device": "cuda"}\'')
    args = parser.parse_args(argv)
    try:
        record = train(read_spec(args.spec), parse(Execution, args.execution, "execution"))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    finally:
        distributed.stop()
    sys.stderr.write(f"{record.run_id}: {record.status} after {record.samples_seen} samples\n")


if __name__ == "__main__":
    main()
