"""Finds collected frames, tables and figures that no longer show what the records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis import artifacts, collect, frame, rendering
from engine import files, paths


def stale() -> list[str]:
    """List all files that are out of date, of every collected suite.

    Returns:
        One line per file, which says what to do.

    Raises:
        FileNotFoundError: If nothing was collected yet.
    """
    collected = sorted(paths.collected("*").parent.glob("*.parquet"))
    if not collected:
        raise FileNotFoundError(f"{paths.collected('*').parent}: nothing is collected here; run: snakemake")
    return [f"{path}: {why}" for file in collected for path, why in of_suite(file.stem).items()]


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


def _stale_artifacts(suite: str, rows: pd.DataFrame) -> Iterator[tuple[Path, str]]:
    forms: dict[artifacts.Form, tuple[str, ...]] = {"table": artifacts.tables(), "figure": artifacts.figures()}
    for form, known in forms.items():
        folder = paths.tables(suite) if form == "table" else paths.figures(suite)
        for path in sorted(folder.glob("*.json")):
            shown = files.read_json(path)
            place = path.with_suffix("")
            if path.stem not in known:
                yield place, f"there is no {form} of this name any more; remove it"
            elif shown["rows_sha256"] != frame.digest(rendering.select(form, path.stem, rows)):
                yield place, "older than its records; draw it again"
            elif shown.get("code_sha256") != artifacts.sources_sha256(form, path.stem):
                yield place, "drawn by other code than this checkout's; draw it again"
