"""Runs without further seeds: scores on every evaluation set, with intervals over its samples."""

from __future__ import annotations

import pandas as pd

from analysis import bootstrap, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("eval", "sampling")


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting and set, one column per method with a single main run, in percent."""
    frame = tidy.main_runs(frame[frame["is_final"]])
    widths = frame[frame["kind"] == "sampling"].set_index(["run_id", "name"])["value"]
    final = tidy.final_scores(frame)
    runs_alike = final.groupby(["dataset_pairs", *tidy.SETTING, "method"])["run_id"].transform("nunique")
    final = final[runs_alike == 1]
    methods = tidy.methods(final)
    rows: list[Row] = []
    for label, part in tidy.settings(final):
        for score in tidy.scores(part):
            runs = part[part["name"] == score.name].set_index("method")
            cells = (
                _cell(runs.loc[[method]].iloc[0], widths) if method in runs.index else Cell(None) for method in methods
            )
            rows.append((label, score.title, *cells))
    return Table(
        title="Single runs in %, ± half-width of the 95 % bootstrap interval over evaluation samples",
        header=("Setting", "Set", *(style.method(method).name for method in methods)),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            "Over samples, not over seeds: what the same weights would reach on another draw of the sets "
            f"({bootstrap.NUM_RESAMPLES} resamples). Another seed's training varies beyond it, so it says nothing of "
            "which method is better. A score of 0 or 100 % has no spread to resample. Methods with several seeds are "
            "in the other tables.",
            "Without an interval: worst-group metrics, as the lowest of several groups comes out lower in resamples; "
            "averages, which are in the other tables, as some of their sets show the same pictures.",
        ),
    )


def _cell(run: pd.Series, widths: pd.Series) -> Cell:
    half_width = widths.get((run["run_id"], run["name"]))
    remark = "" if run["status"] == "evaluated" else run["status"]
    return Cell(100 * run["value"], None if half_width is None else 100 * half_width, remark=remark)
