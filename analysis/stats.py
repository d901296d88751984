"""Intervals, paired differences over seeds and over evaluation sets, ranks: pure functions of frames.

`docs/statistics.md` explains when each is used. Tests import scipy.stats where they need it: the import takes half a
second, and most tables and figures test nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MIN_PAIRS_TO_TEST = 3
"""With two pairs a t test has one degree of freedom and almost no power."""
MIN_SETS_TO_TEST = 6
"""With five differences a two-sided signed-rank test cannot reach p = 0.05: its least p is 2 / 2**5."""


class Ranks(NamedTuple):
    """Mean ranks of methods over evaluation sets, with a test of their differences."""

    mean: pd.Series
    """By method that has scores; 1 is the best, and ties share the mean of their ranks."""
    num_sets: int
    p: float
    """Of Friedman's test that all methods are equal; NaN for fewer than three methods or too few sets."""
    critical_difference: float
    """Nemenyi's: mean ranks that are this far apart differ; NaN where `p` is."""


def half_width(values: pd.Series) -> float:
    """Return half the width of the mean's 95 % t interval; NaN for fewer than two values."""
    values = values.dropna()
    n = len(values)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / np.sqrt(n))


def paired_differences(frame: pd.DataFrame, *, first: str) -> pd.DataFrame:
    """Compare method `first` with every other one, seed by seed.

    Seeds share data order and initialisation, so their difference cancels what both runs have in common. Seeds
    that lack either value are left out. Holm's correction runs over the baselines.

    Args:
        frame: Values of one score in one setting: one row per method and seed, with columns `method`, `seed`, `value`.
        first: The method that the others are subtracted from.

    Returns:
        One row per baseline, in order of appearance; columns `n` (pairs), `mean` (first minus baseline), `half_width`
        (95 %), `p` (paired t test, two-sided; NaN for fewer than three pairs or identical differences) and `p_holm`.
    """
    by_seed = frame.pivot(index="seed", columns="method", values="value")
    baselines = [name for name in frame["method"].unique() if name != first and first in by_seed]
    rows = []
    for baseline in baselines:
        difference = (by_seed[first] - by_seed[baseline]).dropna()
        rows.append((len(difference), difference.mean(), half_width(difference), paired_t_test(difference)))
    result = pd.DataFrame(rows, index=baselines, columns=["n", "mean", "half_width", "p"])
    return result.assign(p_holm=holm(result["p"]))


def by_set(frame: pd.DataFrame) -> pd.DataFrame:
    """Average `value` over seeds, for tests over evaluation sets.

    Args:
        frame: One row per method, seed and set, with columns `method`, `name` and `value`.

    Returns:
        One row per set, one column per method, in order of appearance; NaN where a method has no value.
    """
    means = frame.groupby(["name", "method"], sort=False)["value"].mean().unstack("method")
    return means.reindex(columns=list(frame["method"].unique()))


def set_differences(scores: pd.DataFrame, *, first: str) -> pd.DataFrame:
    """Compare method `first` with every other one, set by set.

    A set counts once, whatever its number of images and seeds. The test asks whether one method is better on sets like
    these, not whether another training would give the same result. Sets that lack either value are left out.

    Args:
        scores: The result of `by_set`.
        first: The method that the others are subtracted from.

    Returns:
        One row per baseline; columns `num_sets`, `mean` and `median` (first minus baseline), `wins`, `ties`, `losses`,
        `p` (Wilcoxon's signed-rank test, two-sided, equal sets left out; NaN for fewer than six others) and `p_holm`.
    """
    from scipy import stats

    baselines = [name for name in scores if name != first and first in scores]
    rows = []
    for baseline in baselines:
        # Scores are fractions of counts: smaller differences than this are rounding.
        difference = (scores[first] - scores[baseline]).dropna().round(12)
        apart = difference[difference != 0]
        p = float(stats.wilcoxon(apart).pvalue) if len(apart) >= MIN_SETS_TO_TEST else float("nan")
        counts = (int((apart > 0).sum()), len(difference) - len(apart), int((apart < 0).sum()))
        rows.append((len(difference), difference.mean(), difference.median(), *counts, p))
    columns = ["num_sets", "mean", "median", "wins", "ties", "losses", "p"]
    result = pd.DataFrame(rows, index=baselines, columns=columns)
    return result.assign(p_holm=holm(result["p"]))


def rank(scores: pd.DataFrame) -> Ranks:
    """Rank methods on every set, and test whether mean ranks differ.

    Methods without any value (all runs diverged) are not ranked. Then sets that lack a value are left out.

    Args:
        scores: The result of `by_set`.

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
        # If all methods are equal on every set, the statistic is 0 / 0.
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
    last = 0
    for start in range(len(order)):
        end = start + int((order.iloc[start:] - order.iloc[start] < ranks.critical_difference).sum())
        if end > max(last, start + 1):
            groups.append(tuple(order.index[start:end]))
            last = end
    return groups


def holm(p: pd.Series) -> pd.Series:
    """Apply Holm's step-down correction; NaN stays NaN and is not counted as a test."""
    known = p.dropna().sort_values()
    factors = np.arange(len(known), 0, -1)
    corrected: pd.Series = (known * factors).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def paired_t_test(difference: pd.Series) -> float:
    """Return the two-sided p of a mean difference of zero; NaN for fewer than three or only equal differences."""
    # 10/83 - 9/83 and 20/83 - 19/83 differ in their last bits: that is rounding, not spread.
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
