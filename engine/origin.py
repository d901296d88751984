"""Tell where the code of a checkout comes from: its commit, and a digest of what is not committed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from engine import files
from engine.schema.base import Frozen, parse
from engine.versions import ROOT

PACKAGES = ("analysis", "baselines", "engine", "experiments", "neuclip")
FILES = ("pyproject.toml", "requirements.lock")
ORIGIN = "provenance.json"


class CodeOrigin(Frozen):
    """The commit of a checkout, and a digest of its uncommitted changes."""

    commit: str
    """"unknown" if git does not say."""
    dirty_sha256: str | None
    """Digest of uncommitted changes to the code that jobs run, untracked files included; None without any; "unknown" if
    git does not say."""


def code_origin(root: Path = ROOT) -> CodeOrigin:
    """Return the origin of the code in a folder: as a snapshot noted it, else as git says."""
    noted = root / ORIGIN
    if noted.exists():
        return parse(CodeOrigin, files.read_text(noted), str(noted))
    commit = _git(root, "rev-parse", "HEAD")
    return CodeOrigin(commit=commit.decode().strip() if commit else "unknown", dirty_sha256=_dirty_sha256(root))


def _git(root: Path, *args: str) -> bytes | None:
    """Return git's output on a checkout; None if it has none to give (no git, no checkout, not allowed)."""
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _dirty_sha256(root: Path) -> str | None:
    # Only of the code: a checkout may hold data that nobody told git to ignore.
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
