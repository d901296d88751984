"""Means, intervals, paired differences over seeds and over evaluation sets, ranks. Pure functions, nothing drawn.

On frames with named columns. `docs/statistics.md` says what each is for. What tests something imports scipy.stats by
itself: that takes half a second, and most tables and figures test nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MIN_PAIRS_TO_TEST = 3
"""With two pairs a t test has one degree of freedom and says next to nothing."""
MIN_SETS_TO_TEST = 6
"""Below six differences no two-sided signed-rank test can reach the level of significance: 2 / 2**5 > 0.05."""


class Ranks(NamedTuple):
    """Mean ranks of methods over evaluation sets, and how far apart they must be."""

    mean: pd.Series
    """By method that has scores, 1 is the best; ties share the mean of their ranks."""
    num_sets: int
    p: float
    """Friedman's test that all methods are alike; NaN for fewer than three methods or too few sets."""
    critical_difference: float
    """Nemenyi's: means this far apart differ; NaN where `p` is."""


def half_width(values: pd.Series) -> float:
    """Half the width of the mean's 95 % t interval; NaN for fewer than two values."""
    values = values.dropna()
    n = len(values)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / np.sqrt(n))


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
                    "p": paired_t_test(difference),
                }
            )
    result = pd.DataFrame(rows, columns=[*by, "baseline", "n", "mean", "half_width", "p"])
    result["p_holm"] = result.groupby(list(by), sort=False, dropna=False)["p"].transform(holm)
    return result


def by_set(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Average `value` over seeds, for tests over evaluation sets.

    Args:
        frame: One row per method, seed and set, with columns `method` and `value`.
        by: Columns that make a set.

    Returns:
        One row per set, one column per method, in order of appearance; NaN where a method has no value.
    """
    means = frame.groupby([*by, "method"], sort=False)["value"].mean().unstack("method")
    return means.reindex(columns=list(frame["method"].unique()))


def set_differences(scores: pd.DataFrame, *, first: str) -> pd.DataFrame:
    """Compare method `first` with every other one, set by set.

    A set counts once, whatever its number of images and seeds: this asks whether one method is the better one on
    sets like these, not whether another training would come out alike. Sets that lack either value are left out.

    Args:
        scores: What `by_set` returns.
        first: The method that the others are subtracted from.

    Returns:
        Columns `baseline`, `num_sets`, `mean` and `median` (first minus baseline), `wins`, `ties`, `losses`, `p`
        (Wilcoxon's signed-rank test, two-sided, equal sets left out; NaN for fewer than six others) and `p_holm`.
    """
    from scipy import stats

    rows = []
    for baseline in [name for name in scores if name != first and first in scores]:
        # Scores are fractions of counts: what differs by less than this is equal, and was rounded otherwise.
        difference = (scores[first] - scores[baseline]).dropna().round(12)
        apart = difference[difference != 0]
        p = float(stats.wilcoxon(apart).pvalue) if len(apart) >= MIN_SETS_TO_TEST else float("nan")
        rows.append(
            {
                "baseline": baseline,
                "num_sets": len(difference),
                "mean": difference.mean(),
                "median": difference.median(),
                "wins": int((apart > 0).sum()),
                "ties": len(difference) - len(apart),
                "losses": int((apart < 0).sum()),
                "p": p,
            }
        )
    columns = ["baseline", "num_sets", "mean", "median", "wins", "ties", "losses", "p"]
    result = pd.DataFrame(rows, columns=columns)
    return result.assign(p_holm=holm(result["p"]))


def rank(scores: pd.DataFrame) -> Ranks:
    """Rank methods on every set, and test whether mean ranks differ.

    A method without any value, such as one whose runs all diverged, is not ranked; then sets with a hole are left out.

    Args:
        scores: What `by_set` returns.

    Returns:
        Mean ranks, Friedman's test and Nemenyi's critical difference
        q * sqrt(k (k + 1) / (6 N)) for k methods and N sets, q the studentized range's 95 % point over sqrt(2).

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006), sec. 3.2.
    """
    from scipy import stats

    scores = scores.dropna(axis=1, how="all").dropna().round(12)
    ranks = scores.rank(axis=1, ascending=False)
    num_sets, num_methods = ranks.shape
    p = difference = float("nan")
    if num_methods > 2 and num_sets >= MIN_SETS_TO_TEST:
        # Without any order among the methods the statistic is 0 / 0.
        if (ranks.nunique(axis=1) > 1).any():
            p = float(stats.friedmanchisquare(*(scores[name] for name in scores)).pvalue)
        else:
            p = 1.0
        q = stats.studentized_range.ppf(1 - SIGNIFICANCE, num_methods, np.inf) / np.sqrt(2)
        difference = float(q * np.sqrt(num_methods * (num_methods + 1) / (6 * num_sets)))
    return Ranks(ranks.mean(), num_sets, p, difference)


def alike(ranks: Ranks) -> list[tuple[str, ...]]:
    """List the largest groups of methods whose mean ranks lie within the critical difference, best first."""
    order = ranks.mean.sort_values(kind="stable")
    groups: list[tuple[str, ...]] = []
    for start, end in itertools.combinations(range(len(order) + 1), 2):
        names = tuple(order.index[start:end])
        is_alike = order.iloc[end - 1] - order.iloc[start] < ranks.critical_difference
        if len(names) > 1 and is_alike:
            groups = [group for group in groups if not set(group) <= set(names)]
            if not any(set(names) <= set(group) for group in groups):
                groups.append(names)
    return groups


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down correction; NaN stays NaN and is not counted as a test."""
    known = p.dropna().sort_values()
    factors = np.arange(len(known), 0, -1)
    corrected: pd.Series = (known * factors).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def paired_t_test(difference: pd.Series) -> float:
    """Return the two-sided p of a mean difference of zero; NaN for fewer than three or only equal differences."""
    # 10/83 - 9/83 and 20/83 - 19/83 differ in their last bits: rounding is no spread.
    difference = difference.round(12)
    if len(difference) < MIN_PAIRS_TO_TEST or difference.nunique() < 2:
        return float("nan")
    from scipy import stats

    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def welch_t_test(a: pd.Series, b: pd.Series) -> float:
    """Return the two-sided p of equal means of unpaired values; NaN for fewer than three, or without any spread."""
    if min(len(a), len(b)) < MIN_PAIRS_TO_TEST or a.nunique() + b.nunique() < 3:
        return float("nan")
    from scipy import stats

    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)
