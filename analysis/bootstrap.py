"""Resample a set's samples: how far one model's result would move on another draw. Not the noise of seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.schema.evaluation import WORST_GROUP, Outcomes

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


def draw(outcomes: Outcomes, metric: str, rng: np.random.Generator, num: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """Draw a set's samples with replacement, within each stratum as many as it has.

    Args:
        outcomes: What the model made of the samples.
        metric: The set's main metric.
        rng: Where chance comes from.
        num: How many times.

    Returns:
        The metric of every draw, (num,).
    """
    stratum_O, count_O = np.array(outcomes.stratum), np.array(outcomes.count)
    counts_RO = np.empty((num, len(count_O)), np.int64)
    for stratum in np.unique(stratum_O):
        of_stratum = count_O[stratum_O == stratum]
        counts_RO[:, stratum_O == stratum] = rng.multinomial(of_stratum.sum(), of_stratum / of_stratum.sum(), num)
    return metric_of(outcomes, metric, counts_RO)


def metric_of(outcomes: Outcomes, metric: str, counts_RO: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the metric, (R,), of samples with each outcome so many times, (R, outcomes)."""
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
    """Half the distance between the ends of the percentile interval.

    An interval of this width around the score holds only where draws are spread about it: not for the lowest of several
    groups, whose draws lie below.
    """
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(high - low) / 2
