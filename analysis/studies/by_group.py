"""Every average of the evaluation, one per row: ImageNet and its variants, retrieval, DataComp's own groups."""

from __future__ import annotations

import pandas as pd

from analysis import cells
from analysis.table import Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting and average, one column per method, in percent."""
    return cells.by_score(frame, "Group", title="Averages over groups of evaluation sets", size="Sets")
