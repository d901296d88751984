"""Facts about evaluation sets, remembered: a set is read for its digest and counts when it is new or touched only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from engine import files, paths
from engine.schema.base import Frozen

_SETTLED_NS = 2_000_000_000
"""A file that was touched later than this before it was read may be touched again at what its disk calls the same
time; what was found is not remembered."""

Stamp = tuple[int, int, int, int]
"""Size, inode, modification time and change time of a file. Only the system sets the last, also for a copy that keeps
times."""


class _Remembered(Frozen):
    """Facts about a folder, and its files before they were found out."""

    files: dict[str, Stamp]
    found: dict[str, str | dict[str, int]] = Field(default_factory=dict)


def folder_digest(folder: Path) -> str:
    """Return `engine.files.folder_sha256`, from memory if no file has come, gone or been touched since."""
    sha256: str = remembered(folder, "sha256", lambda: files.folder_sha256(folder))
    return sha256


def remembered(folder: Path, key: str, find: Callable[[], str | dict[str, int]]) -> Any:
    """Return what `find` finds out about a folder, from memory if no file has come, gone or been touched since.

    The memory is in the results, where there are any.

    Args:
        folder: The folder.
        key: Names what is found out.
        find: Finds it out; what it raises is not remembered.
    """
    known, begin_ns = _recall(folder), time.time_ns()
    if key in known.found:
        return known.found[key]
    fact = find()
    is_settled = max((changed_ns for *_, changed_ns in known.files.values()), default=0) < begin_ns - _SETTLED_NS
    latest = _recall(folder)  # another process may have noted something
    if is_settled and paths.RESULTS.is_dir() and latest.files == known.files:
        noted = latest.model_copy(update={"found": {**latest.found, key: fact}})
        files.write_text(paths.digest(folder), noted.model_dump_json() + "\n")
    return fact


def _recall(folder: Path) -> _Remembered:
    """Return what is remembered of a folder, with its files as they are: nothing if one was touched since."""
    seen = {name: path.stat() for name, path in files.folder_files(folder).items()}
    now = {name: (of.st_size, of.st_ino, of.st_mtime_ns, of.st_ctime_ns) for name, of in seen.items()}
    try:
        known = _Remembered.model_validate_json(paths.digest(folder).read_bytes())
    except (FileNotFoundError, ValidationError):
        return _Remembered(files=now)
    return known if known.files == now else _Remembered(files=now)
