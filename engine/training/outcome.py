"""Write what a run leaves: its attempts, the weights of its milestones, its record."""

from __future__ import annotations

import json
import os
import socket
from typing import Any, cast

from engine import files, paths
from engine.data.index import read_index
from engine.logs import parse_lines, read_attempts
from engine.schema import results
from engine.schema.base import fingerprint, parse
from engine.schema.record import Attempt, Divergence, Milestone, Record
from engine.schema.run import RunSpec
from engine.signatures import find_signatures
from engine.training.provenance import provenance
from engine.training.reporting import peak_memory_bytes
from engine.training.towers import CONFIG_FILE, WEIGHTS_FILE, Towers, export
from engine.training.trainer import Trainer


def add_attempt(trainer: Trainer) -> Attempt:
    """Write down an attempt that starts where the trainer is now (first process only)."""
    run_id = trainer.spec.run_id
    attempt = Attempt(
        first_step=trainer.step_number,
        provenance=provenance(
            dataset_sha256=trainer.dataset.index.sha256,
            device=trainer.device,
            world_size=trainer.collectives.world_size,
        ),
        host=socket.gethostname(),
        job_id=os.environ.get("NEUCLIP_JOB_ID"),
    )
    attempts = (*read_attempts(run_id), attempt)
    files.write_text(paths.attempts(run_id), "".join(f"{attempt.model_dump_json()}\n" for attempt in attempts))
    return attempt


def export_weights(trainer: Trainer) -> None:
    """Write the weights of the milestone that the trainer has reached. Every process calls this; the first writes."""
    scale, bias = trainer.method.logit_scale, trainer.method.logit_bias
    if trainer.collectives.rank == 0:
        towers = trainer.towers if trainer.averaged is None else cast(Towers, trainer.averaged.module)
        folder = paths.weights(trainer.spec.run_id, trainer.samples_seen)
        export(towers, trainer.spec.model.name, folder, logit_scale=scale, logit_bias=bias)


def build_record(trainer: Trainer, divergence: Divergence | None) -> Record:
    """Return the record of a run, from its trainer and its files."""
    spec, reached = trainer.spec, trainer.samples_seen
    run_id, folder = spec.run_id, paths.run(spec.run_id)
    weights = {n: paths.weights(run_id, n) / WEIGHTS_FILE for n in spec.milestones if n <= reached}
    errors: dict[str, Any] = {
        name: [json.loads(files.read_text(paths.measurement(run_id, name, n))) for n in measured.at if n <= reached]
        for name, measured in spec.measurements.items()
    }
    log = paths.metrics(run_id)
    return Record(
        run_id=run_id,
        fingerprint=fingerprint(spec),
        spec=spec,
        status="diverged" if divergence else "finished",
        samples_seen=reached,
        milestones={
            str(n): Milestone(
                weights=str(path.relative_to(folder)),
                sha256=files.file_sha256(path),
                config_sha256=files.file_sha256(path.with_name(CONFIG_FILE)),
            )
            for n, path in weights.items()
        },
        **errors,
        clock_sec={name: round(sec, 6) for name, sec in sorted(trainer.clock.total_sec.items())},
        median_step_sec=trainer.clock.median_step_sec,
        peak_memory_bytes=peak_memory_bytes(trainer.device),
        attempts=read_attempts(run_id),
        num_replaced=trainer.num_replaced,
        num_skipped=trainer.agreement.num_skipped,
        loss_scale=trainer.scaler.get_scale() if trainer.scaler.is_enabled() else None,
        first_indices=tuple(trainer.first_indices),
        divergence=divergence,
        signatures=find_signatures(parse_lines(log, log.read_bytes().splitlines()), trainer.method.signatures),
        log_sha256=files.file_sha256(log),
    )


def write_record(trainer: Trainer, divergence: Divergence | None) -> None:
    """Write the record of a run that has ended, and a copy that no workflow knows (first process only)."""
    text = build_record(trainer, divergence).sealed().model_dump_json(indent=1) + "\n"
    for path in (paths.outcome(trainer.spec.run_id), paths.record(trainer.spec.run_id)):
        files.write_text(path, text)


def restore_record(spec: RunSpec) -> None:
    """Put back the record of a finished run: a workflow removes the output of a rule before it runs the rule again.

    Only if the record is of this spec and these data, and all files that it stands for are still there.
    """
    path, index = paths.outcome(spec.run_id), paths.index(spec.dataset.name)
    if paths.record(spec.run_id).exists() or not path.exists() or not index.exists():
        return
    text = files.read_text(path)
    record = parse(Record, text, str(path))
    weights = [(paths.run(spec.run_id) / kept.weights, kept.sha256) for kept in record.milestones.values()]
    if (
        record.fingerprint == fingerprint(spec)
        and record.provenance.dataset_sha256 == read_index(index).sha256
        and all(file.exists() for file in results.of_record(record))
        and all(files.file_sha256(file) == sha256 for file, sha256 in weights)
    ):
        files.write_text(paths.record(spec.run_id), text)
