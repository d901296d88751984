"""Digests and counts of evaluation sets, remembered: a set is read for them when it is new or touched only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from engine import files, paths
from engine.schema.base import Frozen

_SETTLED_NS = 2_000_000_000
"""A file that was touched later than this before it was hashed may be touched again at what its disk calls the same
time; its digest is not remembered."""


class _Stamp(Frozen):
    """What tells that a file was touched. The system sets the last one, which a copy that keeps times cannot."""

    size: int
    inode: int
    modified_ns: int
    changed_ns: int


class _Remembered(Frozen):
    """What was found out about a folder, and its files when that was begun."""

    files: dict[str, _Stamp]
    sha256: str | None = None
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    """By how it was counted."""


def folder_digest(folder: Path) -> str:
    """Return `engine.files.folder_sha256`, from memory if no file has come, gone or been touched since.

    The memory is in the results, where there are any.
    """
    known, begin_ns = _recall(folder), time.time_ns()
    if known.sha256 is not None:
        return known.sha256
    sha256 = files.folder_sha256(folder)
    _remember(folder, known, begin_ns, sha256=sha256)
    return sha256


def folder_counts(folder: Path, key: str, count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Return what `count` counts in a folder, from memory likewise.

    Args:
        folder: The folder.
        key: Names the way of counting.
        count: Counts; what it raises is not remembered.
    """
    known, begin_ns = _recall(folder), time.time_ns()
    if key in known.counts:
        return known.counts[key]
    counts = count()
    _remember(folder, known, begin_ns, counts={**known.counts, key: counts})
    return counts


def _recall(folder: Path) -> _Remembered:
    """Return what is remembered of a folder, with its files as they are: nothing if one was touched since."""
    now = _stamps(folder)
    try:
        known = _Remembered.model_validate_json(paths.digest(folder).read_bytes())
    except (FileNotFoundError, ValidationError):
        return _Remembered(files=now)
    return known if known.files == now else _Remembered(files=now)


def _remember(folder: Path, known: _Remembered, begin_ns: int, **found: Any) -> None:
    """Note what was found out since `begin_ns`, if the files cannot have changed unnoticed meanwhile."""
    is_settled = max((stamp.changed_ns for stamp in known.files.values()), default=0) < begin_ns - _SETTLED_NS
    latest = _recall(folder)  # another process may have noted something
    if is_settled and paths.RESULTS.is_dir() and latest.files == known.files:
        files.write_text(paths.digest(folder), latest.model_copy(update=found).model_dump_json() + "\n")


def _stamps(folder: Path) -> dict[str, _Stamp]:
    seen = {name: path.stat() for name, path in files.folder_files(folder).items()}
    return {
        name: _Stamp(size=of.st_size, inode=of.st_ino, modified_ns=of.st_mtime_ns, changed_ns=of.st_ctime_ns)
        for name, of in seen.items()
    }
