"""Train a run from its spec to its record: the loop that every method shares.

A run that was stopped goes on from its newest checkpoint and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch

from engine import distributed, files, paths
from engine.data.loader import Batch, build_loader, copied_ahead, watched
from engine.heartbeat import Heartbeat
from engine.schema.base import parse
from engine.schema.record import Divergence, Record
from engine.schema.run import Execution, RunSpec
from engine.stop import Stopped, stop_signals_noted
from engine.training import checkpoint, measurements, outcome
from engine.training.agreement import Votes
from engine.training.reporting import Reporter
from engine.training.trainer import Trainer


def train(spec: RunSpec, execution: Execution) -> Record:
    """Train a run to its end in this process (one of several under `torchrun`), and write its record.

    Returns at once if the run is done. Waits while another job trains it: a run is never trained twice.

    Raises:
        Stopped: On every process, if a signal asked for it and the step is saved. A measurement is given up for it.
        ValueError: If the spec, the data or the checkpoint cannot be used.
    """
    device = distributed.choose_device(execution.device)
    torch.set_num_threads(execution.threads)
    # The first process waits for its turn before it joins the others: a collective must not wait for a training.
    is_first_process = os.environ.get("RANK", "0") == "0"
    with _lock(spec.run_id) if is_first_process else contextlib.nullcontext():
        collectives = distributed.start(device)
        if is_first_process:
            files.remove_temporaries(paths.run(spec.run_id))
            shutil.rmtree(paths.heartbeat(spec.run_id), ignore_errors=True)
            outcome.restore_record(spec)
        done = torch.tensor(float(paths.record(spec.run_id).exists()), device=device)
        if not collectives.broadcast(done):
            with stop_signals_noted() as signals:
                _train(Trainer(spec, execution, device, collectives), signals)
        elif is_first_process:
            checkpoint.remove_checkpoints(paths.checkpoints(spec.run_id))
    path = paths.record(spec.run_id)
    return parse(Record, files.read_text(path), str(path))


@contextlib.contextmanager
def _lock(run_id: str) -> Iterator[None]:
    """Wait until no other process trains the run, and keep others waiting."""
    path = paths.run(run_id) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{run_id}: another process trains it; waiting for that to end\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(trainer: Trainer, signals: Sequence[bool]) -> None:
    trainer.resume()
    is_first_process = trainer.collectives.rank == 0
    attempt = outcome.add_attempt(trainer) if is_first_process else None
    ours, run_id = trainer.collectives, trainer.spec.run_id
    folder = paths.heartbeat(run_id) if ours.world_size > 1 else None
    with (
        contextlib.closing(_batches(trainer)) as batches,
        Reporter(trainer.spec, attempt) as reporter,
        Heartbeat(trainer.execution.stall_sec, folder, ours.rank).watching() as heartbeat,
    ):
        ahead = copied_ahead(batches, trainer.device)
        if is_first_process and trainer.device.type == "cuda":
            ahead = watched(ahead, trainer.execution.num_workers, lambda text: sys.stderr.write(f"{run_id}: {text}\n"))
        divergence = _take_steps(trainer, signals, reporter, ahead, heartbeat)
    if is_first_process:
        outcome.write_record(trainer, divergence)
        checkpoint.remove_checkpoints(paths.checkpoints(trainer.spec.run_id))
    trainer.collectives.barrier()


def _batches(trainer: Trainer) -> Generator[Batch, None, None]:
    """Return this process's batches from the trainer's step to the end of the run."""
    return build_loader(
        trainer.dataset,
        seed=trainer.spec.seed,
        global_batch_size=trainer.spec.global_batch_size,
        steps=range(trainer.step_number, trainer.spec.num_steps),
        rank=trainer.collectives.rank,
        world_size=trainer.collectives.world_size,
        num_workers=trainer.execution.num_workers,
        extra_shares=trainer.extra_shares,
    )


def _take_steps(
    trainer: Trainer, signals: Sequence[bool], reporter: Reporter, batches: Iterator[Batch], heartbeat: Heartbeat
) -> Divergence | None:
    """Take all steps from the trainer's to the end of the run, or until it diverges."""
    spec, execution, collectives = trainer.spec, trainer.execution, trainer.collectives
    last_save = time.monotonic()

    def vote(batch: Batch) -> Votes:
        nonlocal last_save
        # The first process's clock decides for all.
        is_time_to_save = collectives.rank == 0 and time.monotonic() - last_save >= 60 * execution.save_every_min
        if is_time_to_save:
            last_save = time.monotonic()
        return Votes(tuple(signals), is_time_to_save, len(batch.replaced))

    def pause() -> None:
        heartbeat.beat("a measurement", is_step=False)
        measurements.heed_signals(trainer, signals)

    if trainer.step_number:
        measurements.measure(trainer, pause, is_resumed=True)
    for step in range(trainer.step_number, spec.num_steps):
        is_last = step + 1 == spec.num_steps
        is_logged = (step + 1) % execution.log_every_steps == 0 or is_last
        trainer.clock.start_step(timing=is_logged)
        heartbeat.beat(f"the reading of its batch for step {step + 1}")
        with trainer.clock.phase("data"):
            batch = next(batches)
        heartbeat.beat(f"its part of step {step + 1}", is_step=False)
        epoch = trainer.progress().epoch
        metrics, votes, divergence = trainer.step(batch, functools.partial(vote, batch), wants_metrics=is_logged)
        if divergence is not None:
            return divergence
        times = trainer.clock.end_step(is_line=is_logged)
        place = {"step": step + 1, "samples_seen": trainer.samples_seen, "epoch": epoch}
        reporter.step(step + 1, {**place, **metrics, **times} if is_logged else None)
        trainer.count_replaced(votes.num_replaced)
        if trainer.samples_seen in spec.milestones:
            with trainer.clock.phase("checkpoint"):
                outcome.export_weights(trainer)
        try:
            measurements.measure(trainer, pause)
            if any(votes.stop) and not is_last:
                raise Stopped.by(votes.stop, step + 1)
        except Stopped:
            trainer.save()
            raise
        if votes.save and not is_last:
            trainer.save()
            last_save = time.monotonic()
    return None


def read_spec(path: Path) -> RunSpec:
    """Load a run's spec and check that its folder has its id.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no valid spec, or its content was changed by hand.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: `python -m experiments expand SUITE` writes the specs of a suite's runs"
        )
    spec = parse(RunSpec, files.read_text(path), str(path))
    if path.parent.name != spec.run_id:
        raise ValueError(
            f"{path}: its content belongs to run {spec.run_id}. A spec is never edited: change the suite instead"
        )
    return spec
