"""The main figure: every method's final score on every average and evaluation set, with seeds and intervals."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("average", "eval")
MAX_SETS = 16
"""Suites with more sets show averages here, and each set in the figure per_task."""
PANEL_IN = 2.2
"""Width of a panel that names of methods are broken for, inches."""
Panel = tuple[str, tidy.Score, pd.DataFrame]


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw averages in large panels with numbers, and sets in small panels below.

    Sets are left out if there are several settings or more sets than `MAX_SETS`.
    """
    frame = tidy.main_runs(tidy.final_scores(frame))
    if frame.empty:
        return None
    settings, methods = tidy.settings(frame), tidy.methods(frame)
    panels = [(label, score, rows) for label, rows in settings for score in tidy.scores(rows)]
    large = [panel for panel in panels if panel[1].kind == "average"]
    small = [panel for panel in panels if panel[1].kind == "eval" and len(settings) == 1]
    labels = drawing.wrapped([style.method(method).name for method in methods], min(width, PANEL_IN))
    # A name that takes several lines makes all rows as high.
    more = drawing.LINE_IN * max(label.count("\n") for label in labels)
    # A column has no room for both.
    small = small if len(small) <= MAX_SETS and (width > style.COLUMN_IN or not large) else []
    heights = 0.45 + (0.2 + more) * len(methods), 0.42 + (0.165 + more) * len(methods)
    kept = drawing.arrange_scores(large, width, line_in=heights[0])
    large, left_out = kept.panels, kept.left_out
    # Panels, columns, height of a row of panels.
    blocks: list[tuple[list[Panel], int, float]] = [
        (large, kept.columns, heights[0]),
        (small, max(1, int(width / 1.6)), heights[1]),
    ]
    blocks = [(block, min(columns, len(block)), height) for block, columns, height in blocks if block]
    block_heights = [math.ceil(len(block) / columns) * height for block, columns, height in blocks]
    figure = Figure(figsize=(width, sum(block_heights)))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=block_heights)[:, 0]
    for part, (block, columns, _) in zip(parts, blocks, strict=True):
        all_axes = drawing.grid(part, len(block), columns, sharey=True)
        for axes, (label, score, rows) in zip(all_axes, block, strict=True):
            drawing.title(axes, ", ".join(filter(None, [score.title, label])), width / columns)
            _draw(axes, score, rows, methods, labels, with_numbers=block is large)
    drawing.caption(figure, frame, "Score in %.", left_out, over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure


def _draw(
    axes: Axes, score: tidy.Score, rows: pd.DataFrame, methods: list[str], labels: list[str], *, with_numbers: bool
) -> None:
    rows = rows[(rows["kind"] == score.kind) & (rows["name"] == score.name)]
    rows = rows.assign(value=100 * rows["value"])
    for y, method in enumerate(methods):
        one = rows[rows["method"] == method]
        drawing.seeds_and_interval(axes, y, one["value"], method, within=drawing.SCORES)
        if with_numbers and len(one):
            mean = one["value"].mean()
            drawing.row_number(axes, y, one["status"].iloc[0] if math.isnan(mean) else f"{mean:.1f}", method)
    ours = [y for y, method in enumerate(methods) if method == style.OURS]
    drawing.label_rows(axes, labels, rows["value"], ours)
    drawing.chance(axes, 100 * score.chance)
