"""Expand the suites that a command asks for, and write and read those that a workflow is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine import files, paths
from engine.schema.base import parse
from engine.schema.suite import ExpandedSuite
from experiments.design import names
from experiments.design.answers import Answers
from experiments.design.suite import expand


def load(asked: Sequence[str]) -> dict[str, ExpandedSuite]:
    """Return the expanded suites by full name. Writes nothing but what `Answers` keeps, and copies of one's own files.

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
    with Answers.of_folder() as answers:
        return {name: expand(suite.reference, answers) for name, suite in suites.items()}


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
