"""Measure after how many samples and seconds each method reaches what the large batch reaches at its end.

Targets are validation scores: those of sets that no average has. A run that never reaches a target takes infinitely
long; it is never left out.

Source: Dahl et al., "Benchmarking Neural Network Training Algorithms", arXiv:2306.07179.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis import frame as tidy
from analysis import headroom, stats, style

TARGETS = (0.5, 0.75, 0.9, 1.0)
"""Shares of what the large batch scores above chance: a small batch may never get all of it."""
MAX_RATIO = 4.0
"""Ratio to the fastest method at which a profile ends, and beyond which a method gains nothing by reaching a target."""
Measure = Literal["samples", "seconds"]


class Times(NamedTuple):
    """What each seed takes to a target; infinite where it never gets there, NaN where it is not known."""

    taken: pd.Series
    end: pd.Series
    """What the whole training takes."""

    @property
    def reached(self) -> int:
        """Seeds that get there."""
        return int(np.isfinite(self.taken).sum())


class Contender(NamedTuple):
    """A method or a variant of one at the small batch, or the baseline at the large one."""

    label: str
    method: str
    variant: str
    samples: Times
    seconds: Times
    """Of training alone; all NaN where a run moved between devices or commits."""
    timed_on: frozenset[tuple[str, str]]
    """Devices and commits: seconds compare only where these are one and the same."""


class Workload(NamedTuple):
    """One target in one setting."""

    setting: str
    """Only what differs between settings; empty when there is one."""
    share: float
    """One of `TARGETS`."""
    score: float
    """The validation score to reach, a fraction."""
    contenders: list[Contender]
    """The baseline at the small batch comes first, at the large one last."""


class Ratio(NamedTuple):
    """A method's time to a target relative to the baseline's over the seeds that both have."""

    value: float
    """NaN where neither reaches the target."""
    low: float
    high: float
    """95 % interval; NaN with fewer than two seeds, or where not all reach the target."""
    bound: Literal["", ">", "<"]
    """The ratio is more than `value`, or less: one side's median never gets there, its training ends before."""


def workloads(frame: pd.DataFrame) -> list[Workload]:
    """Find all targets, in all settings in which the baseline was trained at both batches.

    Args:
        frame: A tidy frame with validation scores and costs.
    """
    validation = frame[frame["kind"] == "validation"]
    return [
        workload for one in headroom.batches(validation[validation["is_final"]]) for workload in _of_setting(one, frame)
    ]


def _of_setting(batches: headroom.Batches, frame: pd.DataFrame) -> list[Workload]:
    chance = batches.at_large["chance"].iloc[0]
    best = batches.at_large["value"].mean()
    if not best > chance:
        return []  # nothing to reach, or no score
    found = []
    for share in TARGETS:
        # For a share of one the score itself, to the last bit: a single seed reaches its own.
        target = best if share == 1 else chance + share * (best - chance)
        parts = [
            *((style.variant(*curve), *curve, runs) for curve, runs in headroom.parts(batches.at_small).items()),
            (batches.at_large_label, headroom.BASELINE, "", batches.at_large),
        ]
        contenders = [
            Contender(label, method, variant, *_times(frame, runs, target)) for label, method, variant, runs in parts
        ]
        found.append(Workload(batches.setting, share, target, contenders))
    return found


def _times(frame: pd.DataFrame, finals: pd.DataFrame, target: float) -> tuple[Times, Times, frozenset[tuple[str, str]]]:
    rows = frame[frame["run_id"].isin(finals["run_id"])]
    scores = rows[rows["kind"] == "validation"]
    finals = finals.set_index("seed")
    taken = {
        seed: samples_to(run.set_index("samples_seen")["value"], target, run["chance"].iloc[0])
        for seed, run in scores.groupby("seed")
    }
    samples = Times(pd.Series(taken, dtype=float), finals["samples_seen"].astype(float))
    costs = rows[(rows["kind"] == "cost") & (rows["name"] == "median_step_sec") & ~tidy.moved(rows)]
    sec_per_sample = costs.set_index("seed")["value"] / costs.set_index("seed")["global_batch_size"]
    # A run that never gets there takes for ever, whether it was timed or not.
    sec = samples.taken * sec_per_sample.reindex(samples.taken.index)
    seconds = Times(sec.where(np.isfinite(samples.taken), math.inf), samples.end * sec_per_sample)
    return samples, seconds, frozenset(zip(rows["device"], rows["commit"], strict=True))


def samples_to(scores: pd.Series, target: float, chance: float) -> float:
    """Return the samples after which a run first reaches a target; infinite if it never does.

    Between milestones the score is taken to rise or fall in a straight line, before the first one from chance at 0.

    Args:
        scores: By samples seen; NaN where the run never came.
        target: The score to reach, above chance.
        chance: The score of guessing.
    """
    scores = scores.dropna().sort_index()
    x = np.array([0.0, *scores.index])
    y = np.array([chance, *scores])
    above = np.flatnonzero(y >= target)
    if not len(above):
        return math.inf
    end = above[0]
    if end == 0:
        return 0.0
    share = (target - y[end - 1]) / (y[end] - y[end - 1])
    return float(x[end - 1] + share * (x[end] - x[end - 1]))


def ratio(method: Times, baseline: Times) -> Ratio:
    """Compare the times of two methods over the seeds that both have.

    Where all seeds of both reach the target: the geometric mean of the seeds' ratios, with a t interval of their
    logarithms. Elsewhere: the ratio of medians, in which a seed that never gets there is infinite.
    """
    seeds = pd.concat([method.taken, baseline.taken], axis=1, keys=["method", "baseline"], join="inner")
    if seeds.empty or seeds.isna().any(axis=None):
        return Ratio(math.nan, math.nan, math.nan, "")
    if np.isfinite(seeds).all(axis=None):
        logs = (seeds["method"] / seeds["baseline"]).map(math.log)
        mean, half = float(logs.mean()), stats.half_width(logs)
        return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), "")
    # The median of an even number is infinite if one of the two in the middle is.
    of_method, of_baseline = (float(seeds[side].median()) for side in ("method", "baseline"))
    ends = [float(one.end.reindex(seeds.index).median()) for one in (method, baseline)]
    if math.isinf(of_method) and math.isinf(of_baseline):
        return Ratio(math.nan, math.nan, math.nan, "")
    if math.isinf(of_method):
        return Ratio(ends[0] / of_baseline, math.nan, math.nan, ">")
    if math.isinf(of_baseline):
        return Ratio(of_method / ends[1], math.nan, math.nan, "<")
    return Ratio(of_method / of_baseline, math.nan, math.nan, "")


def measures(found: list[Workload]) -> list[Measure]:
    """List what the methods at the small batch compare by: samples, and seconds where they do in all settings."""
    is_timed = all(is_timed_alike([one for one in each.contenders[:-1] if not one.variant]) for each in found)
    return ["samples", "seconds"] if is_timed else ["samples"]


def is_timed_alike(contenders: list[Contender]) -> bool:
    """Tell whether seconds compare: all runs are of one device and commit, and each was timed."""
    places = frozenset[tuple[str, str]]().union(*(one.timed_on for one in contenders))
    return len(places) == 1 and not any(one.seconds.end.isna().any() for one in contenders)


def to_fastest(found: list[Workload], measure: Measure) -> pd.DataFrame:
    """Return how many times as long as the fastest method each one takes, at the small batch, without variants.

    Returns:
        One row per workload, one column per method, by medians over seeds; infinite where the median never gets there,
        and where a method has no runs.
    """
    rows = [
        {
            one.method: float(getattr(one, measure).taken.median(skipna=False))
            for one in workload.contenders[:-1]
            if not one.variant
        }
        for workload in found
    ]
    medians = pd.DataFrame(rows)
    fastest = medians.min(axis=1)
    ratios: pd.DataFrame = medians.div(fastest.where(np.isfinite(fastest), 1.0), axis=0).fillna(math.inf)
    return ratios[style.ordered(ratios.columns)]


def in_words(found: list[Workload], measure: Measure) -> str:
    """Name each method's `profile_score`, best first."""
    ratios = to_fastest(found, measure)
    scores = [(profile_score(of_one), style.method(str(name)).name) for name, of_one in ratios.items()]
    return (
        f"Area below the profile of {measure}: "
        + ", ".join(f"{name} {score:.2f}" for score, name in sorted(scores, reverse=True))
        + "."
    )


def profile_score(ratios: pd.Series) -> float:
    """Return the area below a method's profile from 1 to `MAX_RATIO`, divided by its width: 1 is the best.

    The profile at r is the share of workloads whose ratio is at most r.

    Args:
        ratios: One per workload, as `to_fastest` returns them.
    """
    return float(((MAX_RATIO - ratios.clip(upper=MAX_RATIO)) / (MAX_RATIO - 1)).mean())
