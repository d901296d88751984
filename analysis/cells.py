"""Fill cells that several tables share: a column of scores, ranked and marked."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell


def by_method(rows: pd.DataFrame) -> dict[str, Cell]:
    """Fill one column, the final scores of the main runs of one setting on one set: a cell per method, in percent."""
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
        cells[str(method)] = cell
    return cells


def notes(frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    """Explain cells of `by_method`; `column` is what each of its columns is called."""
    return (
        f"{tidy.describe(frame)}. Best mean in bold, the second set off. n is given where it is not the number of "
        "runs; a single run has no interval.",
        f"* {style.method(style.OURS).name} is better than this baseline, † worse: paired t test over seeds from "
        f"{stats.MIN_PAIRS_TO_TEST} pairs on, level {stats.SIGNIFICANCE}, Holm-corrected over the baselines of a "
        f"{column}.",
    )
