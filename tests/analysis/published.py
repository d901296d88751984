"""Committed results, and the pages about them, for tests that hold one to the other."""

from __future__ import annotations

import pandas as pd
from support.checkout import ROOT

from analysis import stats
from analysis.frame import final_scores, read

RESULTS = ROOT / "docs" / "results"
AVERAGES = ("Average", "Scenes & Variants", "Swapped Captions", "Zero-shot")
CONFIRMATIONS = ("laptop_confirmation", "laptop_second_confirmation", "laptop_third_confirmation")


def averages(
    suite: str, column: str = "method", score: str = "Average", batch: int = 32, variant: str | None = None
) -> pd.DataFrame:
    """Final averages at one batch size in percent, by seed and method or variant."""
    rows = final_scores(read(RESULTS / f"{suite}.parquet"))
    rows = rows[(rows["name"] == score) & (rows["global_batch_size"] == batch)]
    rows = rows if variant is None else rows[rows["variant"] == variant]
    return 100 * rows.pivot(index="seed", columns=column, values="value")


def prose(page: str) -> str:
    """A page of docs/ without its line breaks."""
    return " ".join((ROOT / "docs" / page).read_text().split())


VERDICTS = prose("results/README.md")
EVIDENCE = prose("results/evidence.md")


def shown(differences: pd.Series) -> str:
    """Mean and half-width, as pages say them."""
    return f"{differences.mean():.1f} ± {stats.half_width(differences):.1f}"
