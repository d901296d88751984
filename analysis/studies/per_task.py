"""Scores of every method on every evaluation set, one set per row, for suites with many sets."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import cells, drawing, style
from analysis import frame as tidy
from analysis.studies.main_results import MAX_SETS
from analysis.table import Table

KINDS = ("eval",)
ROW_IN = 0.155
MAX_ROWS = 50
"""Per panel."""


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting and set, one column per method, in percent."""
    if not _has_many_sets(frame):
        return None
    return cells.by_score(frame, "Task", title="Main metric of every task")


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw the sets of the first setting; a page has two panels with half of them each."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    if frame.empty or not _has_many_sets(frame):
        return None
    settings, left_out = drawing.fit(tidy.settings(frame), 1, "settings")
    ((_, rows),) = settings
    scores = tidy.scores(rows)
    means = rows.groupby(["name", "method"])["value"].mean().unstack("method").mul(100)
    columns = 2 if width > style.COLUMN_IN else 1
    num_rows = min(math.ceil(len(scores) / columns), MAX_ROWS)
    scores, sets_left_out = drawing.fit(scores, columns * num_rows, "sets")
    figure = Figure(figsize=(width, ROW_IN * num_rows + 0.35))
    for number, axes in enumerate(drawing.grid(figure, columns, columns)):
        _draw(axes, scores[number * num_rows : (number + 1) * num_rows], means)
    chance = Line2D([], [], label="chance", color=style.MUTED, marker="|", linestyle="")
    drawing.legend(figure, [*drawing.method_handles(rows), chance])
    over_seeds = "Markers: means over seeds."
    drawing.caption(figure, rows, "Main metric in %.", left_out, sets_left_out, over_seeds=over_seeds)
    return figure


def _has_many_sets(frame: pd.DataFrame) -> bool:
    """Tell whether the main table has no room for all sets."""
    return frame["name"].nunique() > MAX_SETS


def _draw(axes: Axes, scores: list[tidy.Score], means: pd.DataFrame) -> None:
    names = [score.name for score in scores]
    rows = range(len(names))
    values = means.reindex(names)
    axes.hlines(rows, values.min(axis=1), values.max(axis=1), color="#d0d0d0", linewidth=1.0, zorder=1)
    axes.plot([100 * score.chance for score in scores], rows, "|", color=style.MUTED, markersize=5, label="chance")
    for method in style.ordered(str(name) for name in means):
        size, zorder = 4.2 if method == style.OURS else 3.4, style.lines(method)["zorder"]
        drawing.markers(axes, values[method], rows, method, size=size, edge=0.3, zorder=zorder)
    drawing.name_rows(axes, [score.title for score in scores])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, min(100, 10 * math.ceil(0.105 * np.nanmax(means)))))
    axes.spines["left"].set_visible(False)
