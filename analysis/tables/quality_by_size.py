"""Every method at every batch or data size, beside OpenCLIP at the same size and at the largest."""

from __future__ import annotations

import pandas as pd

from analysis import by_size
from analysis import frame as tidy
from analysis.table import Table

KINDS = ("average",)
SUITES = ("laptop_hard*", "ablation_batch_size*", "ablation_dataset_size*")


def build(frame: pd.DataFrame) -> Table:
    """Build one row per size and method, from the first average of main runs."""
    return by_size.tabulate(tidy.main_runs(tidy.final_scores(frame)))
