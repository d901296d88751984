"""Scores against batch size, each method at its best on validation sets, and differences to OpenCLIP at each size."""

from __future__ import annotations

import dataclasses

import pandas as pd
from matplotlib.figure import Figure

from analysis import by_size, drawing, headroom, style
from analysis import frame as tidy
from analysis.table import Table

KINDS = ("average", "validation")


def table(frame: pd.DataFrame) -> Table | None:
    """Build the rows of `quality_by_size` from the variants that are chosen."""
    scores = tidy.final_scores(tidy.best_runs(frame))
    if scores.empty:
        nothing = "No validation scores: every set is in an average, or the frame is of an earlier version."
        return dataclasses.replace(by_size.tabulate(scores), notes=(nothing,))
    chosen = "Each method has the variant, or the main run, whose mean over seeds is best on validation sets."
    return by_size.tabulate(scores, which=", each method at its best on validation sets", notes=(chosen,))


LINE_IN = 2.2


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw the first average and the differences, a panel each; a line of panels for each data set and model."""
    best = tidy.final_scores(tidy.best_runs(frame))
    baseline = style.method(headroom.BASELINE).name
    panels = []
    for score in tidy.scores(best)[:1]:
        rows = best[best["name"] == score.name].assign(value=lambda r: 100 * r["value"])
        for _, part in rows.groupby(["dataset_pairs", "dataset", "model"]):
            if part["global_batch_size"].nunique() > 1:
                panels += [(f"{score.title}, %", part), (f"Minus {baseline}, points", _minus_baseline(part))]
    if not panels:
        return None
    shown = drawing.arrange(panels, width, panel_in=2.2, line_in=LINE_IN, what="panels")
    figure, all_axes = shown.draw()
    for axes, (title, rows) in zip(all_axes, shown.panels, strict=True):
        drawing.against_size(axes, rows, "global_batch_size", "Global batch size")
        drawing.title(axes, title, shown.panel_in)
    drawing.legend(figure, drawing.method_handles(best))
    chosen = "Each method has the variant, or the main run, that is best on validation sets."
    drawing.caption(figure, best, chosen, shown.left_out, over_seeds=drawing.MEAN_AND_BAND)
    return figure


def _minus_baseline(rows: pd.DataFrame) -> pd.DataFrame:
    """Subtract the baseline's score at the same batch size, seed by seed."""
    pair = ["global_batch_size", "seed"]
    scores = rows[rows["method"] == headroom.BASELINE].set_index(pair)["value"]
    return rows.assign(value=rows["value"] - scores.reindex(pd.MultiIndex.from_frame(rows[pair])).to_numpy())
