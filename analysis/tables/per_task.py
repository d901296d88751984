"""Every evaluation set in a row of its own: for suites with more sets than the main table has room for."""

from __future__ import annotations

import pandas as pd

from analysis import cells, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("eval",)
SUITES = ("cc3m", "cc12m", "dfn*", "scales")


def build(frame: pd.DataFrame) -> Table:
    """One row per setting and set, one column per method, in percent."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    settings, methods = tidy.settings(frame), tidy.methods(frame)
    keys = ("Setting", "Task") if len(settings) > 1 else ("Task",)
    rows: list[Row] = []
    for label, part in settings:
        for score in tidy.scores(part):
            column = cells.by_method(part[part["name"] == score.name])
            key = (label, score.title)[-len(keys) :]
            rows.append((*key, *(column.get(method, Cell(None)) for method in methods), Cell(100 * score.chance)))
    return Table(
        title="Main metric of every task in %, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, *(style.method(method).name for method in methods), "Chance"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=cells.notes(frame, "task"),
    )
