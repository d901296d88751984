"""The expanded suites, remembered and made anew only when a source has changed; and what a workflow writes of them.

Expanding needs the methods' classes and so torch, which takes seconds to import: it is done by
``python -m experiments.expansion`` in a process of its own, and the workflow reads what that remembered.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from engine import errors, files, paths
from engine.schema.base import Frozen, parse
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
    """Return the expanded suites by full name. Writes nothing but what it remembers.

    Args:
        asked: Names of suites, ablations and groups of them, see `experiments.names`.

    Raises:
        ValueError: If a suite is unknown or cannot be expanded, or if results of another suite have its name here; the
            message is the one for the user.
    """
    suites: dict[str, names.Asked] = {}
    for suite in map(names.split, names.resolve(asked)):
        other = suites.setdefault(suite.name, suite)
        if other.file != suite.file:
            raise ValueError(f"two suites are called {suite.name!r}: {other.file} and {suite.file}; rename one of them")
    for suite in suites.values():
        _refuse_results_of_another(suite)
    ours = sources_sha256()
    digests = {name: _digest(ours, suite) for name, suite in suites.items()}
    found = {name: _remembered(suite, digests[name]) for name, suite in suites.items()}
    stale = [name for name, suite in found.items() if suite is None]
    if stale:
        pairs = (word for name in stale for word in (digests[name], suites[name].reference))
        command = [sys.executable, "-m", "experiments.expansion", *pairs]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ValueError(result.stderr.strip().removeprefix("error: "))
        found |= {name: _remembered(suites[name], digests[name]) for name in stale}
    return {name: suite for name, suite in found.items() if suite is not None}


def write(suite: ExpandedSuite) -> None:
    """Write a suite's runs, their specs and its evaluation below `results/`; equal files are left untouched."""
    for run in suite.runs:
        files.write_text(paths.spec(run.spec.run_id), run.spec.model_dump_json(indent=1) + "\n")
    evaluation = suite.evaluation
    files.write_text(paths.evaluation(evaluation.key), evaluation.model_dump_json(indent=1) + "\n")
    files.write_text(paths.suite(suite.name), suite.model_dump_json(indent=1) + "\n")


def written() -> list[ExpandedSuite]:
    """Return the suites that workflows of this folder were about, each as it was then, sorted by name."""
    found = sorted(paths.suite("*").parent.glob("*.json"))
    return [parse(ExpandedSuite, files.read_text(path), str(path)) for path in found]


class _Remembered(Frozen):
    """An expanded suite, and the digest of all that it was made from."""

    sources_sha256: str
    suite: ExpandedSuite


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


def _remembered(suite: names.Asked, digest: str) -> ExpandedSuite | None:
    """Return an earlier expansion, if it was made from what is there now and its methods' copies are kept."""
    path = paths.expanded(suite.name, suite.file)
    if not path.exists():
        return None
    try:
        remembered = parse(_Remembered, files.read_text(path), str(path))
    except ValueError:
        return None  # of another version
    sources = {run.spec.method.source for run in remembered.suite.runs} - {None}
    is_kept = all(paths.method(source.sha256).exists() for source in sources if source)
    return remembered.suite if is_kept and remembered.sources_sha256 == digest else None


def _refuse_results_of_another(suite: names.Asked) -> None:
    path = paths.suite(suite.name)
    if not path.exists():
        return
    other: str | None = files.read_json(path).get("file")
    is_same = suite.is_ours if other is None else not suite.is_ours and Path(other).resolve() == suite.file.resolve()
    if not is_same:
        raise ValueError(
            f"suite {suite.reference}: the results called {suite.name!r} here are of "
            f"{other or 'the suite of that name in this repository'}; rename the file, or, if it is that suite and has "
            f"moved, remove {path}"
        )


def main(argv: Sequence[str]) -> None:
    """Expand suites and remember them: of each, the digest of what it is made from, and how it is asked for."""
    from experiments.suite import expand  # here: it imports torch

    with errors.explained():
        for digest, asked in zip(argv[::2], map(names.split, argv[1::2]), strict=True):
            remembered = _Remembered(sources_sha256=digest, suite=expand(asked.reference))
            files.write_text(paths.expanded(asked.name, asked.file), remembered.model_dump_json() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
