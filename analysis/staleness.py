"""Finds what is missing of the results, and what no longer shows what the records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis import artifacts, collect, frame, rendering
from engine import files, paths
from engine.schema import results
from engine.schema.base import parse
from engine.schema.suite import ExpandedSuite

MAX_LOST = 10
"""Results of a suite that are named: indexes, runs, evaluations, the frame."""


def stale() -> dict[str, list[str]]:
    """List all files that are missing or out of date, of every suite that a workflow was about.

    Returns:
        By suite, if there are any, one line per file or result.

    Raises:
        FileNotFoundError: If there are no results yet.
    """
    places = (paths.suite("*").parent.glob("*.json"), paths.collected("*").parent.glob("*.parquet"))
    suites = sorted({path.stem for found in places for path in found})
    if not suites:
        raise FileNotFoundError(f"{paths.suite('*').parent}: there are no results here; run: snakemake")
    found = {suite: list(_lines(suite)) for suite in suites}
    return {suite: lines for suite, lines in found.items() if lines}


def _lines(suite: str) -> Iterator[str]:
    file = paths.suite(suite)
    if not file.exists():
        yield f"{file}: missing"
        return
    lost = results.lost(parse(ExpandedSuite, files.read_text(file), str(file)))
    told = [f"{path}: " + ("missing" if path in lacks else _lacks(lacks)) for path, lacks in lost.items()]
    yield from told[:MAX_LOST]
    if len(told) > MAX_LOST:
        yield f"... and {len(told) - MAX_LOST} more of its results"
    yield from (f"{path}: {why}" for path, why in incomplete(suite).items())
    if not lost:
        yield from (f"{path}: {why}" for path, why in of_suite(suite).items())
    # A report of some ablations together has a name of its own, an ablation not always one.
    if "@" not in suite and not paths.report(suite).exists():
        yield f"{paths.report(suite)}: missing"


def _lacks(lost: list[Path]) -> str:
    return f"lacks {lost[0]}" + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")


def of_suite(suite: str) -> dict[Path, str]:
    """Collect a suite once more, and compare digests with its files.

    Returns:
        Why a file is out of date and what to do, by its path; tables and figures by their path without suffix. Files
        that are up to date are not in it.
    """
    file = paths.collected(suite)
    try:
        rows = collect.collect(paths.suite(suite))
    except collect.CollectError as error:
        return {file: f"its results do not fit together any more: {error}"}
    try:
        is_equal = frame.digest(frame.read(file)) == frame.digest(rows)
    except ValueError:
        return {file: "collected by another version; run snakemake with --forcerun collect"}
    why = "records, or what is collected of them, changed since; run snakemake with --forcerun collect"
    changed = {} if is_equal else {file: why}
    return {**changed, **dict(_stale_artifacts(suite, rows))}


def incomplete(suite: str) -> dict[Path, str]:
    """Return what a suite's tables and figures lack, by path without suffix; those with all files are left out."""
    if not paths.drawn(suite).exists():
        return {paths.drawn(suite): "missing"}
    return {place: f"lacks {', '.join(names)}" for place, names in artifacts.lost(suite).items()}


def _stale_artifacts(suite: str, rows: pd.DataFrame) -> Iterator[tuple[Path, str]]:
    if not paths.drawn(suite).exists():
        return
    said = artifacts.drawn(suite)
    made: list[tuple[artifacts.Form, Path, str]] = [("table", paths.tables(suite), name) for name in said.tables]
    made += [("figure", paths.figures(suite), name) for name in said.figures]
    for form, folder, name in made:
        sidecar = folder / f"{name}.json"
        known = artifacts.tables() if form == "table" else artifacts.figures()
        if name not in known:
            yield folder / name, f"there is no {form} of this name any more; draw the suite again"
        elif sidecar.exists():
            shown = files.read_json(sidecar)
            if shown["rows_sha256"] != frame.digest(rendering.select(form, name, rows)):
                yield folder / name, "older than its records; draw it again"
            elif shown["code_sha256"] != artifacts.drawing_sha256():
                yield folder / name, "drawn by other code than this checkout's; draw it again"
