"""Cells that several tables share: scores by method, ranked and marked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis import frame as tidy
from analysis import headroom, stats, style, time_to_target
from analysis.table import Cell, Row, Table


def by_method(rows: pd.DataFrame, main_method: str) -> dict[str, Cell]:
    """Fill a column with final scores in percent, one cell per method; all rows are of one setting and score.

    Baselines that `main_method` differs from are marked.
    """
    summary = rows.groupby("method")["value"].agg(["size", "count", "mean", stats.half_width])
    tests = stats.paired_differences(rows, first=main_method)
    # Ranked as printed: means that look the same share a place.
    printed = (100 * summary["mean"]).round(1)
    places = sorted(printed.dropna().unique(), reverse=True)
    trained = set(rows.loc[rows["status"] != "diverged", "method"])
    cells = {}
    for method, _, n, mean, half_width in summary.itertuples(name=None):
        place = places.index(printed[method]) if len(summary) > 1 and n and method in trained else None
        is_marked = method in tests.index and tests["p_holm"][method] < stats.SIGNIFICANCE
        cells[str(method)] = Cell(
            100 * mean,
            100 * half_width,
            n,
            emphasis="best" if place == 0 else "second" if place == 1 else "",
            mark="" if not is_marked else "*" if tests["mean"][method] > 0 else "†",
            remark=lost(rows[rows["method"] == method]),
        )
    return cells


def lost(rows: pd.DataFrame) -> str:
    """Say of a mean over runs, a row each, how many of them diverged, and how many it is of if not of all.

    Where it is of none, say why.
    """
    n, statuses, diverged = (
        int(rows["value"].count()),
        rows["status"].unique(),
        int((rows["status"] == "diverged").sum()),
    )
    if not n:
        return str(statuses[0]) if len(statuses) == 1 else "absent"
    told = [f"n = {n}"] * (n < len(rows)) + [f"{diverged} of {len(rows)} diverged"] * (diverged > 0)
    return f"({', '.join(told)})" if told else ""


def by_score(frame: pd.DataFrame, key: str, *, title: str, size: str = "") -> Table:
    """Build a table with one row per setting and score of the final models, one column per method, in percent.

    Args:
        frame: Rows of one kind, averages or evaluation sets.
        key: Name of the scores' column.
        title: What the scores are.
        size: Name of a column with `num_samples`; without it there is none.
    """
    frame = tidy.main_runs(tidy.final_scores(frame))
    methods, main_method = tidy.methods(frame), tidy.main_method(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for score in tidy.scores(part):
            of_score = part[part["name"] == score.name]
            column = by_method(of_score, main_method)
            sizes = [Cell(int(of_score["num_samples"].max()), form="d")] if size else []
            shown = (column.get(method, Cell(None)) for method in methods)
            rows.append((label, score.title, *sizes, *shown, Cell(100 * score.chance)))
    sizes_header = (size,) if size else ()
    return Table(
        title=f"{title} in %, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", key, *sizes_header, *(style.method(method).name for method in methods), "Chance"),
        rows=tuple(rows),
        num_keys=2,
        notes=notes(frame, key.lower()),
    )


def guessed(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say how runs that diverged count, if there are any."""
    return ("A run that diverged counts as guessing: it has chance as its score.",) * bool(
        (frame["status"] == "diverged").any()
    )


def mean(values: pd.Series, form: str = ".1f") -> Cell:
    """Return the mean of runs with its interval."""
    return Cell(float(values.mean()), stats.half_width(values), int(values.count()), form)


def difference(test: Mapping[Hashable, Any]) -> tuple[Cell, ...]:
    """Show a row of `stats.paired_differences`, given in fractions: points, p, p after Holm's correction, and pairs."""
    return (
        Cell(100 * test["mean"], 100 * test["half_width"], form="+.1f"),
        *(Cell(test[name], form=style.p_form(test[name])) for name in ("p", "p_holm")),
        Cell(test["n"], form="d"),
    )


def percent(share: headroom.Share, *, of: str) -> Cell:
    """Show a share in percent with its interval; where the denominator, called `of`, is within noise, say that."""
    if math.isinf(share.low):
        return Cell(None, remark=f"{of} within noise")
    if math.isnan(share.low):
        return Cell(100 * share.value, form=".0f")
    spread = f"({100 * share.low:z.0f} to {100 * share.high:z.0f})" if share.low < share.high else ""
    return Cell(100 * share.value, form=".0f", remark=spread)


def ratio(found: time_to_target.Ratio) -> Cell:
    """Write a ratio of times to a target, with its interval in words, or as a bound."""
    if found.bound:
        return Cell(None, remark=f"{found.bound} {found.value:.2f}")
    spread = f"({found.low:z.2f} to {found.high:z.2f})" if found.low < found.high else ""
    return Cell(found.value, form=".2f", remark=spread)


def notes(frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    """Explain the cells of `by_method`; `column` is the word for one of its columns."""
    shown = (
        f"{tidy.describe(frame)}. Best mean in bold, the second set off. n is given where it is not the number of "
        "runs; a single run has no interval.",
        *guessed(frame),
    )
    if len(tidy.methods(frame)) < 2:
        return shown
    return (
        *shown,
        f"* {style.method(tidy.main_method(frame)).name} is better than this baseline, † worse: paired t test over "
        f"seeds from {stats.MIN_PAIRS_TO_TEST} pairs on, level {stats.SIGNIFICANCE}, Holm-corrected over the baselines "
        f"of a {column}.",
    )
