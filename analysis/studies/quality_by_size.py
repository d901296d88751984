"""Scores against batch size and against the amount of data."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import by_size, drawing
from analysis import frame as tidy
from analysis.table import Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per size and method, from the first average of main runs."""
    return by_size.tabulate(tidy.main_runs(tidy.final_scores(frame)))


SIZES = {"global_batch_size": "Global batch size", "dataset_pairs": "Pairs in the data set"}
LINE_IN = 2.0


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw the first average against each size that varies, one panel per variant; main runs are in all panels."""
    frame = tidy.final_scores(frame)
    panels = []
    for score in tidy.scores(frame)[:1]:
        rows = frame[frame["name"] == score.name].assign(value=lambda r: 100 * r["value"])
        for size, label in SIZES.items():
            if rows[size].nunique() < 2:
                continue
            shared = rows[(rows["variant"] == "") & (rows[size] == _shared_size(rows, size))]
            for variant in tidy.variants(rows):
                part = rows[rows["variant"] == variant]
                drawn = pd.concat([part, shared]) if variant else part
                if part[size].nunique() > 1:
                    panels.append((variant.capitalize() or "Equal samples seen", score.title, size, label, drawn))
    if not panels:
        return None
    shown = drawing.arrange(panels, width, panel_in=2.2, line_in=LINE_IN, what="panels")
    figure, all_axes = shown.draw(sharey=True, ylabel=f"{shown.panels[0][1]}, %")
    for axes, (title, _, size, label, rows) in zip(all_axes, shown.panels, strict=True):
        drawing.against_size(axes, rows, size, label)
        drawing.title(axes, title, shown.panel_in)
    drawing.legend(figure, drawing.method_handles(frame))
    drawing.caption(figure, frame, shown.left_out, over_seeds=drawing.MEAN_AND_BAND)
    return figure


def _shared_size(rows: pd.DataFrame, size: str) -> float:
    """Return the size that variants leave out, as the main runs serve for it."""
    varied = set(rows.loc[rows["variant"] != "", size])
    others = [value for value in rows.loc[rows["variant"] == "", size].unique() if value not in varied]
    return float(others[0]) if others else float("nan")
