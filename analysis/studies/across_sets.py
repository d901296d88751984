"""Mean ranks of methods over all evaluation sets, and NeuCLIP against each baseline set by set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table

KINDS = ("eval",)


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting and method."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    main_method = tidy.main_method(frame)
    main_name = style.method(main_method).name
    rows: list[Row] = []
    friedman = []
    for label, part in tidy.settings(frame):
        scores = stats.by_set(part)[tidy.methods(part)]
        if len(scores.columns) < 2 or len(scores) < stats.MIN_SETS_TO_TEST:
            continue
        ranks = stats.rank(scores)
        tests = stats.set_differences(scores, first=main_method).to_dict("index")
        for method in scores:
            name, rank = style.method(str(method)).name, Cell(ranks.mean.get(method), form=".2f")
            rows.append((label, name, rank, *_cells(tests.get(method))))
        where = f"{label}: " if label else ""
        found = f"{style.p_value(ranks.p)}, critical difference {ranks.critical_difference:.2f}"
        test = "not tested" if math.isnan(ranks.p) else found
        friedman.append(f"{where}{ranks.num_sets} of {part['name'].nunique()} sets, {test}")
    return Table(
        title="Methods over all evaluation sets, main metrics, means over seeds",
        header=(
            "Setting",
            "Method",
            "Mean rank",
            f"{main_name} minus it, points",
            "Wins",
            "Ties",
            "Losses",
            "p (Holm)",
        ),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            f"Wins, ties, losses: sets on which {main_name} is above, at and below the baseline. p: two-sided Wilcoxon "
            f"signed-rank test over sets, from {stats.MIN_SETS_TO_TEST} sets on, Holm-corrected over baselines. Sets "
            "count alike, and as if they were drawn independently, which related ones are not.",
            "Friedman's test of the ranks, and Nemenyi's critical difference, over the sets on which every method that "
            f"has any scores has one: {'; '.join(friedman) or 'none'}.",
        ),
    )


def _cells(test: Mapping[Any, Any] | None) -> list[Cell]:
    if test is None or test["num_sets"] == 0:
        return [Cell(None)] * 5
    counts = [Cell(test[name], form="d") for name in ("wins", "ties", "losses")]
    return [Cell(100 * test["mean"], form="+.2f"), *counts, Cell(test["p_holm"], form=style.p_form(test["p_holm"]))]
