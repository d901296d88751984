"""Verdicts on the hypotheses that a suite fixed before its first run."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table

KINDS = ("average", "hypothesis")
SUITES = ("*_confirmation",)
VERDICTS = {1: "holds", 0: "does not show", -1: "contradicted"}
"""By the sign of the difference; 0 where it is not significant."""


def build(frame: pd.DataFrame) -> Table:
    """Build one row per hypothesis, from the first average."""
    averages = tidy.scores(frame)[:1]
    scores = tidy.final_scores(frame)
    values = scores[scores["name"].isin([average.name for average in averages])].set_index("run_id")["value"]
    fixed = frame[frame["kind"] == "hypothesis"]
    parts = [_sides(rows, values) for _, rows in fixed.groupby(fixed["name"].astype(int))]
    pairs = [sides.dropna() for _, sides in parts]
    differences = [sides["higher"] - sides["lower"] for sides in pairs]
    tests = pd.Series([stats.paired_t_test(difference) for difference in differences], dtype="float64")
    rows: list[Row] = [
        (
            label,
            *(Cell(100 * float(sides[name].mean()), 100 * stats.half_width(sides[name])) for name in sides),
            Cell(100 * float(difference.mean()), 100 * stats.half_width(difference), form="+.1f"),
            Cell(p_holm, form=style.p_form(p_holm)),
            Cell(len(difference), form="d"),
            VERDICTS[_sign(float(difference.mean()), p_holm)],
        )
        for (label, _), sides, difference, p_holm in zip(parts, pairs, differences, stats.holm(tests), strict=True)
    ]
    lost = sum(len(all_pairs) - len(kept) for (_, all_pairs), kept in zip(parts, pairs, strict=True))
    what = averages[0].title if averages else "Average"
    return Table(
        title=f"Hypotheses that were fixed before the first run: {what} in %, mean ± half-width of the 95 % interval "
        "over paired seeds",
        header=("Hypothesis", "Higher", "Lower", "Difference", "p (Holm)", "Pairs", "Verdict"),
        rows=tuple(rows),
        notes=(
            "Both sides over the seeds that they share. Two-sided paired t test; Holm's correction runs over all rows. "
            f"Holds, contradicted: p (Holm) is below {stats.SIGNIFICANCE}, and the difference has that sign.",
            *((f"Left out because a run of theirs diverged: {lost} pair{'s' if lost > 1 else ''}.",) if lost else ()),
        ),
    )


def _sides(rows: pd.DataFrame, values: pd.Series) -> tuple[str, pd.DataFrame]:
    """Return a hypothesis in words, and the scores of its higher and its lower side by seed, if both have the seed."""
    sides = [rows[rows["value"] == sign] for sign in (1, -1)]
    names = [
        style.variant(side["method"].iloc[0], style.setting("global_batch_size", side["global_batch_size"].iloc[0]))
        for side in sides
    ]
    scores = [pd.Series(values[side["run_id"]].to_numpy(), index=side["seed"]) for side in sides]
    by_seed = pd.concat(dict(zip(("higher", "lower"), scores, strict=True)), axis=1, join="inner")
    return " > ".join(names), by_seed.sort_index()


def _sign(mean: float, p: float) -> int:
    return 0 if not p < stats.SIGNIFICANCE else 1 if mean > 0 else -1
