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

from engine import paths
from engine.spec import parse
from engine.suite import ExpandedSuite
from experiments import names

ROOT = Path(__file__).resolve().parent.parent
_SOURCES = ("*/*.py", "experiments/*/*.yaml", "engine/models/*.json")
_UNRELATED = ("analysis", "benchmarks", "tests")


def sources_sha256() -> str:
    """Digest of everything that an expansion can depend on."""
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
    suites = names.resolve(asked)
    digest = sources_sha256()
    stale = [name for name in suites if _digest_of(name) != digest or not _is_whole(name)]
    if stale:
        command = [sys.executable, "-m", "experiments", "expand", *stale]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ValueError(result.stderr.strip())
        for name in stale:
            paths.write_text(_digest_path(name), digest + "\n")
    return {name: _read(name) for name in suites}


def _read(name: str) -> ExpandedSuite:
    return parse(ExpandedSuite, paths.suite(name).read_text(encoding="utf-8"), str(paths.suite(name)))


def _is_whole(name: str) -> bool:
    """Whether everything that an expansion writes is there: folders of runs may have been removed since."""
    if not paths.suite(name).exists():
        return False
    suite = _read(name)
    specs = all(paths.spec(run.spec.run_id).exists() for run in suite.runs)
    return specs and paths.evaluation(suite.evaluation.key).exists()


def _digest_path(name: str) -> Path:
    return paths.suite(name).with_suffix(".sources")


def _digest_of(name: str) -> str:
    path = _digest_path(name)
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
