"""The files of a suite's results, and which of them are missing. Imports no torch, for the workflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engine import files, paths
from engine.schema.base import parse
from engine.schema.record import Record
from engine.schema.suite import ExpandedSuite


def of_record(record: Record) -> list[Path]:
    """Return the files of a run that its record stands for: its spec, log, weights and measurements."""
    run_id = record.run_id
    return [
        paths.spec(run_id),
        paths.metrics(run_id),
        *(paths.run(run_id) / milestone.weights for milestone in record.milestones.values()),
        *(paths.measurement(run_id, "gradient_error", error.samples_seen) for error in record.gradient_error),
        *(paths.measurement(run_id, "normalizer_error", error.samples_seen) for error in record.normalizer_error),
        *(
            paths.log_normalizers(run_id, e.samples_seen)
            for e in record.normalizer_error
            if e.sample_sha256 is not None
        ),
    ]


def lost(suite: ExpandedSuite) -> dict[Path, list[Path]]:
    """Find what is missing of a suite's indexes, runs, evaluations and frame.

    Returns:
        By index, record, mark of an evaluation, or frame: its files that are not there, or itself if that is missing.
        What is whole is left out.

    Raises:
        ValueError: If a record does not fit its schema; the message names it.
    """
    found = {}
    for path, belongings in _results(suite):
        missing = [file for file in belongings if not file.exists()] if path.exists() else [path]
        if missing:
            found[path] = missing
    return found


def _results(suite: ExpandedSuite) -> Iterator[tuple[Path, Iterator[Path]]]:
    key = suite.evaluation.key
    for index in (paths.index(name) for name in sorted({run.spec.dataset.name for run in suite.runs})):
        yield index, iter([paths.sidecars(index, "")])
    for run_id, milestones in ((run.spec.run_id, run.milestones) for run in suite.runs):
        yield paths.record(run_id), _of_run(run_id)
        for milestone in milestones:
            yield paths.evaluated(run_id, milestone, key), _of_evaluation(suite, run_id, milestone)
    yield paths.collected(suite.name), iter([paths.suite(suite.name)])


def _of_run(run_id: str) -> Iterator[Path]:
    path = paths.record(run_id)
    yield from of_record(parse(Record, files.read_text(path), str(path)))


def _of_evaluation(suite: ExpandedSuite, run_id: str, milestone: int) -> Iterator[Path]:
    yield paths.evaluation(suite.evaluation.key)
    # There may be tens of thousands: a folder is listed once.
    there = set(os.listdir(paths.eval_result(run_id, milestone, "").parent))
    for name in suite.evaluation.sets:
        path = paths.eval_result(run_id, milestone, name)
        if path.name not in there:
            yield path
