"""Verdicts on what a suite claims before its first run."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import hypotheses, stats, style
from analysis.table import Cell, Row, Table

KINDS = ("average", "hypothesis")


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per hypothesis, from the first average."""
    tested = hypotheses.tested(frame)
    rows: list[Row] = [
        (
            f"{one.higher} > {one.lower}",
            *(_mean(one.scores[side]) for side in one.scores),
            _mean(one.difference, "+.1f"),
            Cell(one.p, form=style.p_form(one.p)),
            Cell(one.difference.count(), form="d"),
            one.verdict,
        )
        for one in tested
    ]
    what = next((score.title for score in tidy.scores(frame)), "Average")
    return Table(
        title=f"Hypotheses of the suite: {what} in %, mean ± half-width of the 95 % interval over paired seeds",
        header=("Hypothesis", "First", "Second", "Difference", "p (Holm)", "Pairs", "Verdict"),
        rows=tuple(rows),
        notes=(
            "Means are over the seeds that both sides share. A diverged run counts as guessing. Two-sided paired t "
            f"test from {stats.MIN_PAIRS_TO_TEST} pairs on, Holm-corrected over all rows; holds, contradicted: p is "
            f"below {stats.SIGNIFICANCE}, and the difference has that sign.",
            "Claimed before is only what the suite's file said at the commits below.",
        ),
    )


def _mean(values: pd.Series, form: str = ".1f") -> Cell:
    return Cell(100 * float(values.mean()), 100 * stats.half_width(values), form=form)
