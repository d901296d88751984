"""Every path of the project, relative to the working directory. Nobody else joins paths of results."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESULTS = Path("results")


def suite(name: str) -> Path:
    """The expanded suite: its runs and what they are evaluated on."""
    return RESULTS / "suites" / f"{name}.json"


def evaluation(key: str) -> Path:
    """A list of evaluation sets with their cards; `key` is ``<name>-<8 hex>``."""
    return RESULTS / "evaluations" / f"{key}.json"


def index(dataset: str) -> Path:
    """The index of a training set's shards."""
    return RESULTS / "index" / dataset / "index.json"


def run(run_id: str) -> Path:
    """The folder of a run."""
    return RESULTS / "runs" / run_id


def spec(run_id: str) -> Path:
    """What the run is; written once, before it starts."""
    return run(run_id) / "spec.json"


def record(run_id: str) -> Path:
    """What came out; written last: a run is done exactly when this exists."""
    return run(run_id) / "record.json"


def metrics(run_id: str) -> Path:
    """One JSON line per logged step."""
    return run(run_id) / "metrics.jsonl"


def attempts(run_id: str) -> Path:
    """One JSON line per start of the run."""
    return run(run_id) / "attempts.jsonl"


def checkpoints(run_id: str) -> Path:
    """Rotating checkpoints for resuming."""
    return run(run_id) / "checkpoints"


def weights(run_id: str, samples_seen: int) -> Path:
    """The exported model of a milestone: an open_clip ``local-dir:`` folder."""
    return run(run_id) / "weights" / str(samples_seen)


def normalizer_error(run_id: str, samples_seen: int) -> Path:
    """How far the method's log-normalizers were from the exact ones."""
    return run(run_id) / "normalizer_error" / f"{samples_seen}.json"


def jobs(run_id: str) -> Path:
    """Logs and records of the scheduler's jobs."""
    return run(run_id) / "jobs"


def eval_result(run_id: str, milestone: int | str, eval_set: str) -> Path:
    """Result of one model on one evaluation set."""
    return RESULTS / "evals" / run_id / str(milestone) / f"{eval_set}.json"


def evaluated(run_id: str, milestone: int | str, key: str) -> Path:
    """Written when a model has been evaluated on every set of an evaluation."""
    return RESULTS / "evals" / run_id / str(milestone) / f"all-{key}.done"


def collected(suite_name: str) -> Path:
    """The tidy frame of a suite."""
    return RESULTS / "collected" / f"{suite_name}.parquet"


def tables(suite_name: str) -> Path:
    """Folder of a suite's tables."""
    return RESULTS / "tables" / suite_name


def figures(suite_name: str) -> Path:
    """Folder of a suite's figures."""
    return RESULTS / "figures" / suite_name


def log(*parts: str) -> Path:
    """Log of a workflow rule."""
    return RESULTS / "logs" / Path(*parts).with_suffix(".log")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return a digest of a folder's content: of the line ``<path> <SHA-256>`` of every file, sorted by path."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{name} {file_sha256(files[name])}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write to; it takes `path`'s place only if the block succeeds.

    The data is on disk before the name changes, so that a crash leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically; a file that already says the same keeps its modification time."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
