"""Train a run from its spec to its record: the loop that every method shares.

A run that was stopped goes on from its newest checkpoint and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch

from engine import distributed, files, paths
from engine.data.index import read_index
from engine.data.loader import Batch, build_loader
from engine.schema.base import fingerprint, parse
from engine.schema.record import Attempt, Divergence, Record
from engine.schema.run import Execution, RunSpec
from engine.stop import SIGNALS, Stopped, StopRequest
from engine.training import checkpoint
from engine.training.provenance import provenance
from engine.training.reporting import Reporter
from engine.training.trainer import Trainer, Wishes, read_attempts

_FIRST_INDICES = 100


def train(spec: RunSpec, execution: Execution) -> Record:
    """Train a run to its end in this process (one of several under `torchrun`), and write its record.

    Returns at once if the run is done already, and waits while another job is at it: a run is never trained twice.

    Raises:
        Stopped: If a signal asked for it; on every process, after the step was saved. A measurement is given up for it.
        ValueError: If the spec, the data or the checkpoint cannot be used as they are.
    """
    device = distributed.choose_device(execution.device)
    torch.set_num_threads(execution.threads)
    # The first process waits for its turn before it joins the others: a collective must not wait for a training.
    is_first_process = os.environ.get("RANK", "0") == "0"
    with _only_trainer(spec.run_id) if is_first_process else contextlib.nullcontext():
        collectives = distributed.start(device)
        if is_first_process:
            files.remove_temporaries(paths.run(spec.run_id))
            _restore_record(spec)
        done = torch.tensor(float(paths.record(spec.run_id).exists()), device=device)
        if not collectives.broadcast(done):
            with StopRequest() as request:
                _train(Trainer(spec, execution, device, collectives), request)
        elif is_first_process:
            checkpoint.remove_checkpoints(paths.checkpoints(spec.run_id))
    path = paths.record(spec.run_id)
    return parse(Record, files.read_text(path), str(path))


@contextlib.contextmanager
def _only_trainer(run_id: str) -> Iterator[None]:
    path = paths.run(run_id) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{run_id}: another process is at it; waiting for it to end\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _restore_record(spec: RunSpec) -> None:
    """Put back the record of a run that is finished: a workflow that runs a rule again removes its output first.

    Only if it is of this spec and of these data, and if its weights are still there.
    """
    path, index = paths.outcome(spec.run_id), paths.index(spec.dataset.name)
    if paths.record(spec.run_id).exists() or not path.exists() or not index.exists():
        return
    text = files.read_text(path)
    record = parse(Record, text, str(path))
    weights = [
        (paths.run(spec.run_id) / milestone.weights, milestone.sha256) for milestone in record.milestones.values()
    ]
    if (
        record.fingerprint == fingerprint(spec)
        and record.provenance.dataset_sha256 == read_index(index).sha256
        and all(file.exists() and files.file_sha256(file) == sha256 for file, sha256 in weights)
    ):
        files.write_text(paths.record(spec.run_id), text)


def _train(trainer: Trainer, request: StopRequest) -> None:
    spec, device, collectives = trainer.spec, trainer.device, trainer.collectives
    run_id = spec.run_id
    trainer.resume()
    first = trainer.step_number
    is_first_process = collectives.rank == 0
    attempt: Attempt | None = None
    if is_first_process:
        origin = provenance(
            dataset_sha256=trainer.dataset.index.sha256, device=device, world_size=collectives.world_size
        )
        job_id = os.environ.get("NEUCLIP_JOB_ID")
        attempt = Attempt(first_step=first, provenance=origin, host=socket.gethostname(), job_id=job_id)
        attempts = (*read_attempts(run_id), attempt)
        files.write_text(paths.attempts(run_id), "".join(f"{attempt.model_dump_json()}\n" for attempt in attempts))
    with contextlib.closing(_batches(trainer)) as batches, Reporter(spec, attempt) as reporter:
        divergence = _take_steps(trainer, request, reporter, batches)
    if is_first_process:
        record = trainer.record(divergence)
        for path in (paths.outcome(run_id), paths.record(run_id)):
            files.write_text(path, record.model_dump_json(indent=1) + "\n")
        checkpoint.remove_checkpoints(paths.checkpoints(run_id))
    collectives.barrier()


def _batches(trainer: Trainer) -> Generator[Batch, None, None]:
    """This process's batches from where the trainer is to the end of the run."""
    return build_loader(
        trainer.dataset,
        seed=trainer.spec.seed,
        global_batch_size=trainer.spec.global_batch_size,
        steps=range(trainer.step_number, trainer.spec.num_steps),
        rank=trainer.collectives.rank,
        world_size=trainer.collectives.world_size,
        num_workers=trainer.execution.num_workers,
    )


def _take_steps(
    trainer: Trainer, request: StopRequest, reporter: Reporter, batches: Iterator[Batch]
) -> Divergence | None:
    """Go from where the trainer is to the end of the run."""
    spec, execution, device, collectives = trainer.spec, trainer.execution, trainer.device, trainer.collectives
    first = trainer.step_number
    is_first_process = collectives.rank == 0
    divergence: Divergence | None = None
    last_save = time.monotonic()

    def wishes(batch: Batch) -> Wishes:
        # The first process's clock decides for all.
        is_time_to_save = is_first_process and time.monotonic() - last_save >= 60 * execution.save_every_min
        return Wishes(tuple(request.seen), is_time_to_save, len(batch.replaced))

    def stopped(signals: Sequence[bool]) -> Stopped:
        return Stopped([n for n, sent in zip(SIGNALS, signals, strict=True) if sent][-1], trainer.step_number)

    if first and trainer.is_measurement_missing():
        signals = trainer.measure_normalizers(request.seen)
        if any(signals):
            raise stopped(signals)
    for step in range(first, spec.num_steps):
        logged = (step + 1) % execution.log_every_steps == 0 or step + 1 == spec.num_steps
        trainer.clock.start_step(timing=logged)
        with trainer.clock.phase("data"):
            batch = next(batches)
        if len(trainer.first_indices) < _FIRST_INDICES:
            indices = collectives.gather(batch.index_B.to(device)).tolist()
            trainer.first_indices += indices[: _FIRST_INDICES - len(trainer.first_indices)]
        epoch = trainer.progress().epoch
        metrics, agreed, reason = trainer.step(batch, functools.partial(wishes, batch), timing=logged)
        if reason is not None:
            divergence = Divergence(
                step=step,
                reason=reason,
                temperature=1 / float(trainer.method.logit_scale.detach()),
                indices=tuple(batch.index_B[:_FIRST_INDICES].tolist()),
            )
            break
        times = trainer.clock.end_step()
        place = {"step": step + 1, "samples_seen": trainer.samples_seen, "epoch": epoch}
        reporter.step(step + 1, {**place, **metrics, **times} if logged else None)
        trainer.count_replaced(agreed.num_replaced, batch)
        if trainer.samples_seen in spec.milestones:
            trainer.export_weights()
        signals, is_measured = agreed.stop, True
        if trainer.is_measurement_due:
            signals = trainer.measure_normalizers(request.seen)
            is_measured = not any(signals)
        if step + 1 == spec.num_steps and is_measured:
            break
        if agreed.save or any(signals):
            trainer.save()
            last_save = time.monotonic()
        if any(signals):
            raise stopped(signals)
    return divergence


def read_spec(path: Path) -> RunSpec:
    """Load a run's spec and check that it lies in the folder of its own id.

    Raises:
        ValueError: If the file is no valid spec, or its content was changed by hand.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: `snakemake -n` writes the specs of a suite's runs")
    spec = parse(RunSpec, files.read_text(path), str(path))
    if path.parent.name != spec.run_id:
        raise ValueError(
            f"{path}: its content belongs to run {spec.run_id}. A spec is never edited: change the suite instead"
        )
    return spec
