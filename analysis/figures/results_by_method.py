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
"""More are in the figure per_task."""
Panel = tuple[str, tidy.Score, pd.DataFrame]


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """Draw averages large with their numbers, sets small below.

    With several settings only the averages of each, with more sets than fit below only the averages.
    """
    frame = tidy.main_runs(tidy.final_scores(frame))
    if frame.empty:
        return drawing.nothing("No results by method: this suite evaluates no main runs.")
    settings, methods = tidy.settings(frame), tidy.methods(frame)
    panels = [(label, score, rows) for label, rows in settings for score in tidy.scores(rows)]
    large = [panel for panel in panels if panel[1].kind == "average"]
    small = [panel for panel in panels if panel[1].kind == "eval" and len(settings) == 1]
    small = small if len(small) <= MAX_SETS else []
    if len(large) > drawing.MAX_PANELS:
        large = [panel for panel in large if panel[1].name == large[0][1].name]
    large, left_out = drawing.fit(large, drawing.MAX_PANELS, "settings")
    # Panels, columns, height of a row of panels.
    blocks: list[tuple[list[Panel], int, float]] = [
        (large, min(3, len(large)), 0.45 + 0.2 * len(methods)),
        (small, min(4, len(small)), 0.42 + 0.165 * len(methods)),
    ]
    blocks = [block for block in blocks if block[0]]
    heights = [math.ceil(len(block) / columns) * height for block, columns, height in blocks]
    figure = Figure(figsize=(style.PAGE_IN, sum(heights) + 0.2))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (block, columns, _) in zip(parts, blocks, strict=True):
        grid = part.subplots(math.ceil(len(block) / columns), columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(block) :]:
            axes.remove()
        for axes, (label, score, rows) in zip(grid.flat, block, strict=False):
            axes.set_title(", ".join(filter(None, [score.title, label])))
            _draw(axes, score, rows, methods, with_numbers=block is large)
    diverged = "".join(f" {style.method(name).name}: {count}." for name, count in _diverged(frame).items())
    drawing.caption(figure, frame, f"Score in %.{diverged}{left_out}", over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure


def _draw(axes: Axes, score: tidy.Score, rows: pd.DataFrame, methods: list[str], *, with_numbers: bool) -> None:
    rows = rows[(rows["kind"] == score.kind) & (rows["name"] == score.name)]
    rows = rows.assign(value=100 * rows["value"])
    for y, method in enumerate(methods):
        one = rows[rows["method"] == method]
        drawing.seeds_and_interval(axes, y, one["value"], method)
        if with_numbers and len(one):
            mean = one["value"].mean()
            drawing.row_number(axes, y, one["status"].iloc[0] if math.isnan(mean) else f"{mean:.1f}", method)
    ours = [y for y, method in enumerate(methods) if method == style.OURS]
    drawing.label_rows(axes, [style.method(method).name for method in methods], rows["value"], ours)
    drawing.chance(axes, 100 * score.chance)


def _diverged(frame: pd.DataFrame) -> dict[str, str]:
    """Count diverged runs, which have no final score, by method."""
    counts = {}
    for method, rows in frame.groupby("method"):
        diverged = rows.loc[rows["status"] == "diverged", "run_id"].nunique()
        if diverged:
            counts[str(method)] = f"{diverged} of {rows['run_id'].nunique()} runs diverged"
    return counts
