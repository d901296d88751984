"""Measure how much of the gap between a small and a large batch each method closes.

The gap is OpenCLIP's own, to the largest batch that it was trained with over as many samples: what a better normalizer
could bring at the small batch, if the small batch's normalizer were all that costs it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis import frame as tidy
from analysis import stats, style

BASELINE = "openclip"


class Share(NamedTuple):
    """A ratio of two means over the same seeds, and its 95 % interval."""

    value: float
    low: float
    high: float
    """Both NaN with fewer than two seeds; both infinite where the denominator may be zero."""
    n: int
    """Seeds that both runs have."""


class Contender(NamedTuple):
    """A method or a variant of one at the small batch, or the baseline at the large one."""

    label: str
    method: str
    variant: str
    scores: pd.Series
    """Fractions, by seed; NaN where a run diverged."""
    closed: Share


class Gap(NamedTuple):
    """One score in one setting."""

    setting: str
    """Only what differs between the gaps; empty when there is one setting."""
    score: tidy.Score
    contenders: list[Contender]
    """The baseline at the small batch comes first, at the large one last."""


class Batches(NamedTuple):
    """Runs at a small batch, and the baseline's at the large one over as many samples, in one setting."""

    setting: str
    """Only what differs between the settings that were found; empty when there is one."""
    small: int
    """Pairs in the small batch."""
    large: int
    """Pairs in the large one."""
    at_small: pd.DataFrame
    at_large: pd.DataFrame

    @property
    def at_large_label(self) -> str:
        """What the baseline at the large batch is called."""
        return f"{style.method(BASELINE).name}, {self.large / self.small:g} \N{MULTIPLICATION SIGN} the batch"


def batches(finals: pd.DataFrame) -> list[Batches]:
    """Find all settings in which the baseline was trained at a small and a larger batch, with as many samples.

    Args:
        finals: Rows of final models.
    """
    found: list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]] = []
    for (dataset, model), rows in finals.groupby(["dataset", "model"], sort=False):
        baseline = rows[rows["method"] == BASELINE]
        main = tidy.main_runs(baseline)
        for small in sorted(map(int, main["global_batch_size"].unique())):
            samples = main.loc[main["global_batch_size"] == small, "samples_seen"].max()
            alike = rows[rows["samples_seen"].between(samples * 0.99, samples * 1.01)]
            of_baseline = alike[alike["method"] == BASELINE]
            large = of_baseline["global_batch_size"].max()
            if large > small:
                at_large = of_baseline[of_baseline["global_batch_size"] == large]
                at_large = at_large[at_large["variant"] == tidy.variants(at_large)[0]]
                setting = {"dataset": dataset, "model": model, "global_batch_size": small}
                found.append((setting, alike[alike["global_batch_size"] == small], at_large))
    differing = [key for key in tidy.SETTING if len({str(setting[key]) for setting, *_ in found}) > 1]
    return [
        Batches(
            ", ".join(style.setting(key, setting[key]) for key in differing),
            setting["global_batch_size"],
            int(at_large["global_batch_size"].iloc[0]),
            at_small,
            at_large,
        )
        for setting, at_small, at_large in found
    ]


def parts(at_small: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Split the runs at the small batch by method and variant, the baseline first."""
    return dict(sorted(tidy.curves(at_small).items(), key=lambda item: item[0] != (BASELINE, "")))


def gaps(frame: pd.DataFrame) -> list[Gap]:
    """Measure every average in every setting that has both batches.

    Args:
        frame: A tidy frame with averages.
    """
    finals = tidy.final_scores(frame)
    return [
        Gap(one.setting, score, _contenders(one, score.name))
        for one in batches(finals[finals["kind"] == "average"])
        for score in tidy.scores(one.at_small)
    ]


def _contenders(batches: Batches, score: str) -> list[Contender]:
    def by_seed(rows: pd.DataFrame) -> pd.Series:
        return rows[rows["name"] == score].set_index("seed")["value"]

    by_curve = parts(batches.at_small)
    small, large = by_seed(by_curve[BASELINE, ""]), by_seed(batches.at_large)
    found = [
        Contender(style.variant(method, variant), method, variant, by_seed(rows), share(by_seed(rows), small, large))
        for (method, variant), rows in by_curve.items()
    ]
    return [*found, Contender(batches.at_large_label, BASELINE, "", large, share(large, small, large))]


def share(scores: pd.Series, small: pd.Series, large: pd.Series) -> Share:
    """Return mean(scores - small) / mean(large - small) over the seeds that all three have.

    The interval holds every ratio r for which a paired t test does not refuse mean(scores - small - r (large - small))
    = 0. It is exact for normal differences, lopsided, and unbounded where the gap itself is not significant.

    Source: Fieller, "Some problems in interval estimation", JRSS B 16 (1954).
    """
    seeds = pd.concat([scores, small, large], axis=1, keys=["scores", "small", "large"]).dropna()
    gain, gap = seeds["scores"] - seeds["small"], seeds["large"] - seeds["small"]
    n = len(seeds)
    if n == 0 or gap.mean() == 0:
        return Share(math.nan, math.nan, math.nan, n)
    value = float(gain.mean() / gap.mean())
    # Equal in every seed, as the two batches' own shares of 0 and 1 are: the ratio is that without any doubt.
    if n > 1 and np.ptp((gain - value * gap).round(12)) == 0:
        return Share(value, value, value, n)
    if n < 2:
        return Share(value, math.nan, math.nan, n)
    # (gain - r gap)^2 <= t^2 Var(gain - r gap) / n, a quadratic in r.
    factor = stdtrit(n - 1, (1 + stats.CONFIDENCE) / 2) ** 2 / n
    covariance = np.cov(gain, gap, ddof=1) * factor
    a = gap.mean() ** 2 - covariance[1, 1]
    b = gain.mean() * gap.mean() - covariance[0, 1]
    c = gain.mean() ** 2 - covariance[0, 0]
    root = b * b - a * c
    if a <= 0 or root < 0:
        return Share(value, -math.inf, math.inf, n)
    return Share(value, float((b - math.sqrt(root)) / a), float((b + math.sqrt(root)) / a), n)
