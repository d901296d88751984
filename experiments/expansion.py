"""The expanded suites as files, made anew only when a source has changed.

Expanding needs the methods' classes and so torch, which takes seconds to import: it is done by
``python -m experiments expand`` in a process of its own, and the workflow reads what that wrote.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from engine import files, paths
from engine.schema.base import parse
from engine.schema.suite import ExpandedSuite
from engine.versions import ROOT
from experiments import cards, names

_SOURCES = ("*/**/*.py", "experiments/*/*.yaml", "engine/models/*.json")
_UNRELATED = ("analysis", "benchmarks", "tests")


def sources_sha256() -> str:
    """Digest of everything in this repository that an expansion can depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        if path.relative_to(ROOT).parts[0] in _UNRELATED:
            continue
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def load(asked: Sequence[str]) -> dict[str, ExpandedSuite]:
    """Return the expanded suites by full name, as written by `python -m experiments expand`.

    Args:
        asked: Names of suites, ablations and groups of them, see `experiments.names`.

    Raises:
        ValueError: If a suite is unknown or cannot be expanded; the message is the one for the user.
    """
    suites: dict[str, names.Asked] = {}
    for suite in map(names.split, names.resolve(asked)):
        other = suites.setdefault(suite.name, suite)
        if other.file != suite.file:
            raise ValueError(f"two suites are called {suite.name!r}: {other.file} and {suite.file}; rename one of them")
    ours = sources_sha256()
    digests = {name: _digest(ours, suite) for name, suite in suites.items()}
    found = {name: _read(name) for name in suites if _digest_of(name) == digests[name]}
    stale = [name for name in suites if name not in found or not _is_whole(found[name])]
    if stale:
        command = [sys.executable, "-m", "experiments", "expand", *(suites[name].reference for name in stale)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ValueError(result.stderr.strip().removeprefix("error: "))
        for name in stale:
            files.write_text(_digest_path(name), digests[name] + "\n")
        found |= {name: _read(name) for name in stale}
    return {name: found[name] for name in suites}


class _Entry(BaseModel):
    class_: str | None = Field(default=None, alias="class")


class _Tuned(BaseModel):
    tuned: str | None = None


class _Sources(_Tuned):
    """Other files that a suite names: those of methods, and suites whose chosen settings it takes."""

    methods: dict[str, _Entry]
    variants: tuple[_Tuned, ...] = ()


def _digest(ours: str, suite: names.Asked) -> str:
    """Digest of all that a suite's expansion depends on, `ours` being that of this repository."""
    said = cards.read_yaml(suite.file, _Sources)
    references = [entry.class_ for entry in said.methods.values() if entry.class_]
    sources = [suite.file, *(suite.file.parent / reference.rpartition(":")[0] for reference in references)]
    makers = [suite.maker(part.tuned) for part in (said, *said.variants) if part.tuned is not None]
    sources += [file for maker in makers for file in (maker.file, maker.tuned)]
    lines = [f"{file}\0{files.file_sha256(file) if file.is_file() else None}\n" for file in sources]
    return hashlib.sha256("".join([ours, *lines]).encode()).hexdigest()


def _read(name: str) -> ExpandedSuite:
    return parse(ExpandedSuite, files.read_text(paths.suite(name)), str(paths.suite(name)))


def _is_whole(suite: ExpandedSuite) -> bool:
    """Tell if all else that an expansion writes is there: folders of runs may have been removed since."""
    specs = all(paths.spec(run.spec.run_id).exists() for run in suite.runs)
    sources = {run.spec.method.source for run in suite.runs} - {None}
    methods = all(paths.method(source.sha256).exists() for source in sources if source)
    return specs and methods and paths.evaluation(suite.evaluation.key).exists()


def _digest_path(name: str) -> Path:
    return paths.suite(name).with_suffix(".sources")


def _digest_of(name: str) -> str:
    """Return the digest of what an earlier expansion was made from."""
    path = _digest_path(name)
    return files.read_text(path).strip() if path.exists() and paths.suite(name).exists() else ""
