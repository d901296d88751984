"""Every average of the evaluation in a row of its own: ImageNet and its variants, retrieval, DataComp's own groups."""

from __future__ import annotations

import pandas as pd

from analysis import cells, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average",)


def build(frame: pd.DataFrame) -> Table:
    """One row per setting and average, one column per method, in percent."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    settings, methods = tidy.settings(frame), tidy.methods(frame)
    keys = ("Setting", "Group") if len(settings) > 1 else ("Group",)
    rows: list[Row] = []
    for label, part in settings:
        for score in tidy.scores(part):
            of_group = part[part["name"] == score.name]
            column = cells.by_method(of_group)
            num_sets = Cell(int(of_group["num_samples"].max()), form="d")
            shown = (column.get(method, Cell(None)) for method in methods)
            rows.append((*(label, score.title)[-len(keys) :], num_sets, *shown, Cell(100 * score.chance)))
    return Table(
        title="Averages over groups of evaluation sets in %, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, "Sets", *(style.method(method).name for method in methods), "Chance"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=cells.notes(frame, "group"),
    )
