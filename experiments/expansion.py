"""The expanded suites as files, made anew only when a source has changed.

Expanding needs the methods' classes and so torch, which takes seconds to import: it is done by
``python -m experiments expand`` in a process of its own, and the workflow reads what that wrote.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine import errors, files, paths
from engine.evaluation import card_files
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
            raise ValueError(errors.said(result.stderr))
        for name in stale:
            files.write_text(_digest_path(name), digests[name] + "\n")
        found |= {name: _read(name) for name in stale}
    return {name: found[name] for name in suites}


class _Tuned(BaseModel):
    tuned: str | None = None


class _Makers(_Tuned):
    """The suites whose chosen settings a suite takes."""

    variants: tuple[_Tuned, ...] = ()


def _digest(ours: str, suite: names.Asked) -> str:
    """Digest of all that a suite's expansion depends on, `ours` being that of this repository."""
    said = cards.read_yaml(suite.file, _Makers)
    sources = _with_named(suite.file)
    for maker in [suite.maker(part.tuned) for part in (said, *said.variants) if part.tuned is not None]:
        sources |= {**_with_named(maker.file), maker.tuned: None}
    lines = [f"{file}\0{files.file_sha256(file) if file.is_file() else None}\n" for file in sources]
    return hashlib.sha256("".join([ours, *lines]).encode()).hexdigest()


def _with_named(file: Path) -> dict[Path, None]:
    """Return a file and all files that it names, at any depth: cards, models, methods as ``file.py:ClassName``."""
    found, new = {file: None}, [file]
    for each in new:
        for text in _texts(card_files.load_yaml(each)) if each.is_file() and each.suffix == card_files.SUFFIX else ():
            name = re.fullmatch(r"(.+(\.yaml|\.json|\.py))(?::\w+)?", text)
            named = name and Path(card_files.placed(name[1], each.parent, name[2]))
            if named and named not in found:
                found[named] = None
                new.append(named)
    return found


def _texts(said: Any) -> Iterator[str]:
    """Yield all texts in a YAML file's values."""
    if isinstance(said, dict | list):
        for each in said.values() if isinstance(said, dict) else said:
            yield from _texts(each)
    elif isinstance(said, str):
        yield said


def _read(name: str) -> ExpandedSuite:
    return parse(ExpandedSuite, files.read_text(paths.suite(name)), str(paths.suite(name)))


def _is_whole(suite: ExpandedSuite) -> bool:
    """Tell if all else that an expansion writes is there: folders of runs may have been removed since."""
    specs = all(paths.spec(run.spec.run_id).exists() for run in suite.runs)
    datasets = all(map(cards.is_known, {run.spec.dataset.name for run in suite.runs}))
    own = {run.spec.model for run in suite.runs if run.spec.model.is_own}
    models = all(paths.model(str(model.config_sha256), model.name).exists() for model in own)
    sources = {run.spec.method.source for run in suite.runs} - {None}
    methods = all(paths.method(source.sha256).exists() for source in sources if source)
    return specs and datasets and methods and models and paths.evaluation(suite.evaluation.key).exists()


def _digest_path(name: str) -> Path:
    return paths.suite(name).with_suffix(".sources")


def _digest_of(name: str) -> str:
    """Return the digest of what an earlier expansion was made from."""
    path = _digest_path(name)
    return files.read_text(path).strip() if path.exists() and paths.suite(name).exists() else ""
