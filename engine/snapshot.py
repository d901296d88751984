"""The code that jobs run: a copy of this checkout, taken when a job is submitted, so that later edits do not reach it.

Copies are named by their content and by what git says about them, so that runs of the same code share one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engine import paths
from engine.spec import Frozen, canonical_json, parse

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("analysis", "baselines", "engine", "experiments", "neuclip")
FILES = ("pyproject.toml", "requirements.lock")
ORIGIN = "provenance.json"


class CodeOrigin(Frozen):
    """What git says about a checkout."""

    commit: str
    """"unknown" where git does not say."""
    dirty_sha256: str | None
    """Digest of what is not committed of the code that jobs run, untracked files included; None when there is nothing;
    "unknown" where git does not say."""


def code_origin(root: Path = ROOT) -> CodeOrigin:
    """Return where the code in a folder comes from: as a snapshot noted it, or as git says."""
    noted = root / ORIGIN
    if noted.exists():
        return parse(CodeOrigin, paths.read_text(noted), str(noted))
    commit = _git(root, "rev-parse", "HEAD")
    return CodeOrigin(commit=commit.decode().strip() if commit else "unknown", dirty_sha256=_dirty_sha256(root))


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


def _git(root: Path, *args: str) -> bytes | None:
    """Return what git prints about a checkout; None where it cannot say (no git, no checkout, not allowed)."""
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _dirty_sha256(root: Path) -> str | None:
    # Of nothing else: a checkout may hold data that nobody told git to ignore.
    code = ("--", *PACKAGES, *FILES)
    difference = _git(root, "diff", "HEAD", *code)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", *code)
    if difference is None or untracked is None:
        return "unknown"
    if not difference and not untracked:
        return None
    digest = hashlib.sha256(difference)
    for name in sorted(filter(None, untracked.split(b"\0"))):
        path = root / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()
