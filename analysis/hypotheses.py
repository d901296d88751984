"""Test what a suite claims before its first run: all its hypotheses together, each on its own pairs of seeds."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style


class Tested(NamedTuple):
    """A hypothesis, the scores that it is about, and what came out."""

    higher: str
    lower: str
    """Both sides in words."""
    scores: pd.DataFrame
    """Columns `higher` and `lower`, by seed: those that both sides have, in fractions. A diverged run has what guessing
    scores; NaN where an evaluation set was not there."""
    p: float
    """Holm-corrected over all hypotheses of the suite; NaN where nothing can be tested."""
    verdict: Literal["holds", "contradicted", "does not show", "not tested"]

    @property
    def difference(self) -> pd.Series:
        """Higher minus lower, by seed."""
        return self.scores["higher"] - self.scores["lower"]


def tested(frame: pd.DataFrame) -> list[Tested]:
    """Test the hypotheses of a frame's suite by its first average, in the suite's order."""
    claimed = frame[frame["kind"] == "hypothesis"]
    averages = tidy.scores(frame[frame["kind"] == "average"])
    if claimed.empty or not averages:
        return []
    final = tidy.final_scores(frame)
    values = final[final["name"] == averages[0].name].set_index("run_id")["value"]
    sides = [
        [rows[rows["value"] == sign] for sign in (1, -1)] for _, rows in claimed.groupby(claimed["name"].astype(int))
    ]
    pairs = [
        pd.concat([values[side["run_id"]].set_axis(side["seed"]) for side in both], axis=1, join="inner")
        .set_axis(["higher", "lower"], axis=1)
        .sort_index()
        for both in sides
    ]
    differences = [scores["higher"] - scores["lower"] for scores in pairs]
    p = pd.Series([stats.paired_t_test(difference.dropna()) for difference in differences])
    # One that cannot be tested stays a member of the family, whose size was fixed before.
    corrected = stats.holm(p.fillna(1.0)).where(p.notna())
    return [
        Tested(_label(higher), _label(lower), scores, one, _verdict(float(difference.mean()), one))
        for (higher, lower), scores, difference, one in zip(sides, pairs, differences, corrected, strict=True)
    ]


def _label(side: pd.DataFrame) -> str:
    first = side.iloc[0]
    return style.variant(first["method"], style.setting("global_batch_size", first["global_batch_size"]))


def _verdict(mean: float, p: float) -> Literal["holds", "contradicted", "does not show", "not tested"]:
    if pd.isna(p):
        return "not tested"
    if p >= stats.SIGNIFICANCE:
        return "does not show"
    return "holds" if mean > 0 else "contradicted"
