"""Every method at every batch size with the variant of it that is best on validation sets, beside OpenCLIP."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis import by_size
from analysis import frame as tidy
from analysis.table import Table

KINDS = ("average", "validation")
SUITES = ("ablation_batch_size_lr*",)


def build(frame: pd.DataFrame) -> Table:
    """Build the rows of `quality_by_size` from the variants that are chosen."""
    scores = tidy.final_scores(tidy.best_runs(frame))
    if scores.empty:
        nothing = "No validation scores: every set is in an average, or the frame is of an earlier version."
        return dataclasses.replace(by_size.tabulate(scores), notes=(nothing,))
    chosen = "Each method has the variant, or the main run, whose mean over seeds is best on validation sets."
    return by_size.tabulate(scores, which=", each method at its best on validation sets", notes=(chosen,))
