"""Means, intervals and paired differences over seeds, on frames with named columns. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MIN_PAIRS_TO_TEST = 3
"""With two pairs a t test has one degree of freedom and says next to nothing."""


def half_width(values: pd.Series) -> float:
    """Half the width of the mean's 95 % t interval; NaN for fewer than two values."""
    values = values.dropna()
    n = len(values)
    if n < 2:
        return float("nan")
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))


def summarize(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Summarize `value` over the runs of each group.

    Args:
        frame: One row per run and group, with columns `value` and `status`.
        by: Columns that make a group; groups keep their order of appearance.

    Returns:
        Columns `by`, then `num_runs`, `n` (runs with a value), `mean`, `sd` (sample), `half_width` (95 %) and
        `num_diverged`.
    """
    groups = frame.groupby(list(by), sort=False, dropna=False)
    return groups.agg(
        num_runs=("value", "size"),
        n=("value", "count"),
        mean=("value", "mean"),
        sd=("value", "std"),
        half_width=("value", half_width),
        num_diverged=("status", lambda status: int((status == "diverged").sum())),
    ).reset_index()


def paired_differences(frame: pd.DataFrame, by: Sequence[str], *, first: str) -> pd.DataFrame:
    """Compare method `first` with every other one, seed by seed.

    Seeds share data order and initialisation, so their difference cancels what both runs have in common. Seeds
    that lack either value are left out. Holm's correction runs over the baselines of one group.

    Args:
        frame: One row per method, seed and group, with columns `method`, `seed` and `value`.
        by: Columns that make a group; groups keep their order of appearance.
        first: The method that the others are subtracted from.

    Returns:
        Columns `by`, then `baseline`, `n` (pairs), `mean` (first minus baseline), `half_width` (95 %), `p` (paired
        t test, two-sided; NaN for fewer than three pairs or identical differences) and `p_holm`.
    """
    rows = []
    for keys, group in frame.groupby(list(by), sort=False, dropna=False):
        table = group.pivot(index="seed", columns="method", values="value")
        if first not in table:
            continue
        for baseline in [name for name in group["method"].unique() if name != first]:
            difference = (table[first] - table[baseline]).dropna()
            rows.append(
                {
                    **dict(zip(by, keys, strict=True)),
                    "baseline": baseline,
                    "n": len(difference),
                    "mean": difference.mean(),
                    "half_width": half_width(difference),
                    "p": _t_test(difference),
                }
            )
    result = pd.DataFrame(rows, columns=[*by, "baseline", "n", "mean", "half_width", "p"])
    result["p_holm"] = result.groupby(list(by), sort=False, dropna=False)["p"].transform(holm)
    return result


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down correction; NaN stays NaN and is not counted as a test."""
    known = p.dropna().sort_values()
    factors = np.arange(len(known), 0, -1)
    corrected: pd.Series = (known * factors).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def _t_test(difference: pd.Series) -> float:
    if len(difference) < MIN_PAIRS_TO_TEST or difference.nunique() < 2:
        return float("nan")
    return float(stats.ttest_1samp(difference, 0.0).pvalue)
