"""The expanded suites, remembered and made anew only when a source has changed; and what a workflow writes of them.

Expanding needs the methods' classes and so torch, which takes seconds to import: it is done by
``python -m experiments.design.expansion`` in a process of its own, and the workflow reads what that remembered.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine import errors, files, paths
from engine.evaluation import card_files
from engine.schema.base import Frozen, fingerprint, located, parse
from engine.schema.suite import ExpandedSuite
from engine.schema.written import load_yaml
from engine.versions import ROOT
from experiments.design import cards, names

_SOURCES = (
    *(f"{package}/**/*.py" for package in ("baselines", "engine", "experiments", "neuclip")),
    "experiments/*/*.yaml",
    "engine/models/*.json",
)


def sources_sha256() -> str:
    """Digest of everything in this repository that an expansion can depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def load(asked: Sequence[str]) -> dict[str, ExpandedSuite]:
    """Return the expanded suites by full name. Writes nothing but what it remembers.

    Args:
        asked: Names of suites, ablations and groups of them, see `experiments.design.names`.

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
        words = [
            (digests[name], str(paths.expanded(name, suites[name].file)), suites[name].reference) for name in stale
        ]
        command = [sys.executable, "-m", "experiments.design.expansion", *itertools.chain(*words)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ValueError(errors.said(result.stderr))
        found |= {name: _remembered(suites[name], digests[name]) for name in stale}
    if lost := [name for name, suite in found.items() if suite is None]:
        raise ValueError(f"{', '.join(lost)}: copies of your own files went while they were read; run this again")
    return {name: suite for name, suite in found.items() if suite is not None}


def write(suite: ExpandedSuite) -> None:
    """Write a suite's runs, their specs and its evaluation below `results/`; equal files are left untouched."""
    for run in suite.runs:
        files.write_text(paths.spec(run.spec.run_id), run.spec.model_dump_json(indent=1) + "\n")
    evaluation = suite.evaluation
    files.write_text(paths.evaluation(evaluation.key), evaluation.sealed().model_dump_json(indent=1) + "\n")
    files.write_text(paths.suite(suite.name), suite.sealed().model_dump_json(indent=1) + "\n")


def written() -> list[ExpandedSuite]:
    """Return the suites that workflows of this folder were about, each as it was then, sorted by name."""
    found = sorted(paths.suite("*").parent.glob("*.json"))
    return [parse(ExpandedSuite, files.read_text(path), str(path)) for path in found]


class _Remembered(Frozen):
    """An expanded suite, the digest of all that it was made from, and its own."""

    sources_sha256: str
    suite_sha256: str
    suite: ExpandedSuite


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


def _remembered(asked: names.Asked, digest: str) -> ExpandedSuite | None:
    """Return an earlier expansion, if it was made from what is there now and its methods' copies are kept."""
    path = paths.expanded(asked.name, asked.file)
    if not path.exists():
        return None
    try:
        remembered = parse(_Remembered, files.read_text(path), str(path))
    except ValueError:
        return None  # of another version, or damaged
    suite = remembered.suite
    is_kept = remembered.sources_sha256 == digest and remembered.suite_sha256 == fingerprint(suite)
    return suite if is_kept and _is_whole(suite) else None


def _is_whole(suite: ExpandedSuite) -> bool:
    """Tell if the copies that an expansion keeps of one's own files are there."""
    specs = [run.spec for run in suite.runs]
    datasets = all(map(cards.is_known, {spec.dataset.name for spec in specs}))
    models = {paths.model(str(spec.model.config_sha256), spec.model.name) for spec in specs if spec.model.is_own}
    methods = {paths.method(spec.method.source.sha256) for spec in specs if spec.method.source}
    return datasets and all(path.exists() for path in (*models, *methods))


def _refuse_results_of_another(suite: names.Asked) -> None:
    path = paths.suite(suite.name)
    if not path.exists():
        return
    other = names.file_of(path)
    is_same = suite.is_ours if other is None else not suite.is_ours and Path(other).resolve() == suite.file.resolve()
    if not is_same:
        raise ValueError(
            f"suite {suite.reference}: the results called {suite.name!r} here are of "
            f"{other or 'the suite of that name in this repository'}; rename the file, or, if it is that suite and has "
            f"moved, remove {path}"
        )


def _with_named(file: Path) -> dict[Path, None]:
    """Return a file and all files that it names, at any depth: cards, models, methods as ``file.py:ClassName``."""
    found, new = {file: None}, [file]
    for each in new:
        for text in _texts(load_yaml(each)) if each.is_file() and each.suffix == card_files.SUFFIX else ():
            name = re.fullmatch(r"(.+(\.yaml|\.json|\.py))(?::\w+)?", text)
            with located(str(each)):
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


def main(argv: Sequence[str]) -> None:
    """Expand suites and remember them: of each, the digest of what it is made from, the file, and its name."""
    from experiments.design.suite import expand  # here: it imports torch

    with errors.explained():
        for digest, out, reference in zip(argv[::3], argv[1::3], argv[2::3], strict=True):
            suite = expand(reference)
            remembered = _Remembered(sources_sha256=digest, suite_sha256=fingerprint(suite), suite=suite)
            files.write_text(Path(out), remembered.model_dump_json() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
