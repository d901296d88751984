"""Resamples an evaluation set: how far one model's score would move on other samples. Not the noise of seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.stats import CONFIDENCE
from engine.schema.evaluation import WORST_GROUP, Outcomes

NUM_RESAMPLES = 1000


def draw(outcomes: Outcomes, metric: str, rng: np.random.Generator, num: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """Draw a set's samples with replacement; each stratum keeps its number of samples.

    Args:
        outcomes: The model's outcomes on the samples.
        metric: The set's main metric.
        rng: Source of random numbers.
        num: Number of resamples.

    Returns:
        The metric of every resample, (num,).
    """
    stratum_O, count_O = np.array(outcomes.stratum), np.array(outcomes.count)
    counts_RO = np.empty((num, len(count_O)), np.int64)
    for stratum in np.unique(stratum_O):
        of_stratum = count_O[stratum_O == stratum]
        counts_RO[:, stratum_O == stratum] = rng.multinomial(of_stratum.sum(), of_stratum / of_stratum.sum(), num)
    return metric_of(outcomes, metric, counts_RO)


def metric_of(outcomes: Outcomes, metric: str, counts_RO: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the metric, (R,), from the counts of each outcome in R resamples, (R, outcomes)."""
    outcome_OK, stratum_O = np.array(outcomes.outcome), np.array(outcomes.stratum)
    if metric == "mean_recall@1":
        captions_found_R, captions_R, images_R = (counts_RO @ outcome_OK).T
        both: NDArray[np.float64] = (captions_found_R / captions_R + images_R / counts_RO.sum(axis=1)) / 2
        return both
    strata = np.unique(stratum_O)
    is_stratum_OS = stratum_O[:, None] == strata
    size_RS = counts_RO @ is_stratum_OS
    if metric == "F1-macro_all":
        predicted_O1 = outcome_OK[:, :1]
        hits_RS = counts_RO @ (is_stratum_OS & (predicted_O1 == strata))
        score_RS = 2 * hits_RS / (size_RS + counts_RO @ (predicted_O1 == strata))
    else:
        score_RS = counts_RO * outcome_OK[:, 0] @ is_stratum_OS / size_RS
    result: NDArray[np.float64] = score_RS.min(axis=1) if metric in WORST_GROUP else score_RS.mean(axis=1)
    return result


def half_width(draws: NDArray[np.float64]) -> float:
    """Return half the width of the percentile interval of resampled metrics.

    An interval of this width around the score is right only where resamples lie on both sides of it. The lowest of
    several groups is no such metric: its resamples lie below.
    """
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(high - low) / 2
