"""Copy this checkout when a job is submitted, so that later edits do not reach the job.

A copy is named by its content and by git's commit and changes, so that runs of the same code share one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from engine import paths
from engine.origin import FILES, ORIGIN, PACKAGES, code_origin
from engine.schema.base import canonical_json
from engine.versions import ROOT


def take(root: Path = ROOT) -> Path:
    """Copy the code below `paths.code()`, unless it is there already.

    Returns:
        The absolute path of the copy; with it first on Python's path, the packages come from there.
    """
    origin = canonical_json(code_origin(root)) + "\n"
    content = {ORIGIN: origin.encode(), **{name: (root / name).read_bytes() for name in sorted(_names(root))}}
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    copy = paths.code() / digest.hexdigest()[:12]
    if not copy.exists():
        temporary = copy.with_name(f".{copy.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        for name, data in content.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            temporary.rename(copy)
        except OSError:
            # Another launcher was faster: its copy holds the same.
            shutil.rmtree(temporary)
            if not copy.exists():
                raise
    return copy.absolute()


def _names(root: Path) -> Iterator[str]:
    yield from (name for name in FILES if (root / name).exists())
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                yield path.relative_to(root).as_posix()
