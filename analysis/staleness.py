"""Which collected frames, tables and figures no longer show what the records say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pandas as pd

from analysis import artifacts, collect, frame, rendering
from engine import paths


def stale() -> list[str]:
    """Collect every suite that was collected before once more, and compare digests.

    Returns:
        One line per file that is out of date; says what to do.

    Raises:
        FileNotFoundError: If nothing was collected yet.
    """
    collected = sorted(paths.collected("*").parent.glob("*.parquet"))
    if not collected:
        raise FileNotFoundError(f"{paths.collected('*').parent}: nothing is collected here; run: snakemake")
    lines = []
    for file in collected:
        suite = file.stem
        try:
            rows = collect.collect(paths.suite(suite))
        except collect.CollectError as error:
            lines.append(f"{file}: its results do not fit together any more: {error}")
            continue
        try:
            is_equal = frame.digest(frame.read(file)) == frame.digest(rows)
        except ValueError as error:
            lines.append(str(error))
            continue
        if not is_equal:
            lines.append(f"{file}: records have changed since; run snakemake with --forcerun collect")
        lines += _stale_artifacts(suite, rows)
    return lines


def _stale_artifacts(suite: str, rows: pd.DataFrame) -> Iterator[str]:
    forms: dict[artifacts.Form, tuple[str, ...]] = {"table": artifacts.tables(), "figure": artifacts.figures()}
    for form, known in forms.items():
        folder = paths.tables(suite) if form == "table" else paths.figures(suite)
        for path in sorted(folder.glob("*.json")):
            shown = json.loads(path.read_text(encoding="utf-8"))
            place = path.with_suffix("")
            if path.stem not in known:
                yield f"{place}: there is no {form} of this name any more; remove it"
            elif shown["rows_sha256"] != frame.digest(rendering.select(form, path.stem, rows)):
                yield f"{place}: older than its records; draw it again"
            elif shown.get("code_sha256") != artifacts.sources_sha256(form, path.stem):
                yield f"{place}: drawn by other code than this checkout's; draw it again"
