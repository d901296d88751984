"""The main table: every method's final score on every average and evaluation set."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import reference, stats, style
from analysis.rendering import Cell, Row, Table

KINDS = ("average", "eval")
OURS = style.method(style.OURS).name


def build(frame: pd.DataFrame) -> Table:
    """One row per setting and method, one column per average and set, in percent."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    scores, settings = tidy.scores(frame), tidy.settings(frame)
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for label, part in settings:
        columns = [_cells(part[(part["kind"] == score.kind) & (part["name"] == score.name)]) for score in scores]
        runs = part.groupby("method")["run_id"].nunique()
        diverged = part[part["status"] == "diverged"].groupby("method")["run_id"].nunique()
        for method in tidy.methods(part):
            key = (label, style.method(method).name)[-len(keys) :]
            counts = (Cell(runs[method], form="d"), Cell(diverged.get(method, 0), form="d"))
            rows.append((*key, *(cells[method] for cells in columns), *counts))
    return Table(
        title="Results in %, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, *(score.title for score in scores), "Runs", "Diverged"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            f"{tidy.describe(frame)}. Best mean in bold, the second set off. n is given where it is not the number of "
            "runs; a single run has no interval.",
            f"* {OURS} is better than this baseline, † worse: paired t test over seeds from {stats.MIN_PAIRS_TO_TEST} "
            f"pairs on, level {stats.SIGNIFICANCE}, Holm-corrected over the baselines of a column.",
        ),
        reference=reference.by_method("results", "datasets"),
    )


def _cells(rows: pd.DataFrame) -> dict[str, Cell]:
    """Fill one column of one setting: a cell per method."""
    summary = stats.summarize(rows, ["method"]).set_index("method")
    tests = stats.paired_differences(rows, ["name"], first=style.OURS).set_index("baseline")
    # What is printed is ranked: means that look the same share a place.
    printed = (100 * summary["mean"]).round(1)
    places = sorted(printed.dropna().unique(), reverse=True)
    cells = {}
    for row in summary.reset_index().to_dict("records"):
        method, n, runs = row["method"], row["n"], row["num_runs"]
        cell = Cell(100 * row["mean"], 100 * row["half_width"], n)
        if n < runs:
            statuses = rows.loc[rows["method"] == method, "status"].unique()
            cell = cell.but(remark=f"(n = {n})" if n else statuses[0] if len(statuses) == 1 else "absent")
        if len(summary) > 1 and printed[method] in places[:2]:
            cell = cell.but(emphasis="best" if printed[method] == places[0] else "second")
        if method in tests.index and tests["p_holm"][method] < stats.SIGNIFICANCE:
            cell = cell.but(mark="*" if tests["mean"][method] > 0 else "†")
        cells[method] = cell
    return cells
