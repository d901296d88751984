"""Read and write files so that nothing is lost: digests, atomic writes, full disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their paths in it, sorted.

    Names that begin with a dot are left out: downloaders keep their own notes there.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: files[name] for name in sorted(files) if not f"/{name}".count("/.")}


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 (hex) of a folder's content: of a line ``<path> <SHA-256>`` per file, sorted by path."""
    lines = [f"{name} {file_sha256(path)}\n" for name, path in folder_files(folder).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class DiskFullError(OSError):
    """There is no room for a file: the disk is full, or a quota or a limit on the size of files is reached."""


@contextmanager
def explain_full_disk(path: Path, *, temporary: Path | None = None, num_bytes: int | None = None) -> Iterator[None]:
    """Tell what to do when the block that writes `path` finds no room.

    Args:
        path: The file.
        temporary: The file that is written first.
        num_bytes: Its size, if known.

    Raises:
        DiskFullError: In place of the error that the block raised for want of room.
    """
    try:
        yield
    except Exception as error:
        code = _no_room(error)
        if code is None:
            raise
        written = temporary.stat().st_size if temporary is not None and temporary.exists() else 0
        free = shutil.disk_usage(path.parent).free + written
        needed = f"more than {written:,}" if num_bytes is None else f"about {num_bytes:,}"
        short = f"{needed} bytes are needed, {free:,} were free on its disk"
        disk = os.statvfs(path.parent)
        if code == errno.ENOSPC and disk.f_files and not disk.f_favail:
            short = f"its disk may hold {disk.f_files:,} files and folders (inodes), and has them: remove some"
        raise DiskFullError(
            f"no room for {path} ({os.strerror(code)}): {short}. "
            "Nothing that was there is lost. Make room, or raise the quota or limit, and run the same command again"
        ) from error


def _no_room(error: BaseException | None) -> int | None:
    """Return the system's error number, if want of room is behind an exception."""
    while error is not None:
        # Errors from Rust (safetensors) have the number in their text only.
        said = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return code
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def atomic_write(path: Path, *, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling to write to; it takes `path`'s place only if the block succeeds.

    The data is on disk before the name changes: a crash leaves the old file or the new one. A process that is killed
    leaves its temporary file: see `remove_temporaries`. The umask decides who may read the file.

    Args:
        path: The file.
        num_bytes: Its size, if known.

    Raises:
        DiskFullError: If there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(path, temporary=temporary, num_bytes=num_bytes):
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            with temporary.open("rb") as file:
                # safetensors puts a file there that only its owner may read.
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file in the block.

    Args:
        path: The file; made if missing.
        wait: Wait for another process that holds it.

    Raises:
        BlockingIOError: If another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # For reading too: network file systems ask for that.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield


def remove_temporaries(folder: Path) -> None:
    """Delete half-written files of killed processes in a folder, and below, that no other process writes to."""
    # safetensors writes to a `.tmp<letters>` beside its file, and renames that.
    for pattern in (".*.tmp", ".tmp*"):
        for path in folder.rglob(pattern):
            path.unlink(missing_ok=True)


def user_path(path: str) -> Path:
    """Return a path that a user wrote, with ``~`` and ``~name`` as their home folders.

    Raises:
        ValueError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such user: write the folder itself") from None


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: If it is not UTF-8; names the line.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8, or "
            "remove it if a command here makes it again"
        ) from None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        ValueError: If it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}: mend it, or remove it") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically; a file that holds it already keeps its modification time."""
    data = text.encode()
    if path.exists() and path.read_bytes() == data:
        return
    with atomic_write(path, num_bytes=len(data)) as temporary:
        temporary.write_bytes(data)
