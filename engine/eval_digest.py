"""Digests of evaluation sets, remembered: a set is hashed when it is new or touched, not by every evaluation of it."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from engine import paths
from engine.spec import Frozen

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
    """A folder's digest, and its files when it was taken."""

    sha256: str
    files: dict[str, _Stamp]


def folder_digest(folder: Path) -> str:
    """Return `engine.paths.folder_sha256`, from memory if no file has come, gone or been touched since.

    The memory is in the results, where there are any.
    """
    memory, now = paths.digest(folder), _stamps(folder)
    try:
        remembered = _Remembered.model_validate_json(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        remembered = None
    if remembered is not None and remembered.files == now:
        return remembered.sha256
    begin_ns = time.time_ns()
    sha256 = paths.folder_sha256(folder)
    is_settled = max((stamp.changed_ns for stamp in now.values()), default=0) < begin_ns - _SETTLED_NS
    if is_settled and paths.RESULTS.is_dir() and _stamps(folder) == now:
        paths.write_text(memory, _Remembered(sha256=sha256, files=now).model_dump_json() + "\n")
    return sha256


def _stamps(folder: Path) -> dict[str, _Stamp]:
    seen = {name: path.stat() for name, path in paths.folder_files(folder).items()}
    return {
        name: _Stamp(size=of.st_size, inode=of.st_ino, modified_ns=of.st_mtime_ns, changed_ns=of.st_ctime_ns)
        for name, of in seen.items()
    }
