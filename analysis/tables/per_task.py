"""Every evaluation set, one per row, for suites with more sets than the main table has room for."""

from __future__ import annotations

import pandas as pd

from analysis import cells
from analysis.table import Table

KINDS = ("eval",)
SUITES = ("cc3m", "cc12m", "dfn*", "scales")


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting and set, one column per method, in percent."""
    return cells.by_score(frame, "Task", title="Main metric of every task")
