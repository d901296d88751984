"""Training curves: scores over milestones, temperature, gradient norm, and each method's own loss."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("average", "train")
COMPARED = {"temperature/value": "Temperature", "grad_norm": "Gradient norm"}
LOSS = "loss/total"
COMPARED_IN, LOSS_IN = (1.6, 1.6), (1.1, 1.25)
"""Least width, and height, of a panel."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw a block per setting: quantities that compare above; below, where there is room, losses, which do not."""
    frame = tidy.main_runs(frame)
    if not (frame["name"] == LOSS).any():
        return None
    settings = tidy.settings(frame)
    num_methods = max(rows["method"].nunique() for _, rows in settings)
    num_compared = max(len(_compared(rows)) for _, rows in settings)
    columns = min(num_compared, int(width / COMPARED_IN[0])), min(num_methods, int(width / LOSS_IN[0]))
    heights = [
        math.ceil(num_compared / columns[0]) * COMPARED_IN[1],
        math.ceil(num_methods / columns[1]) * LOSS_IN[1],
    ]
    with_losses = len(settings) * sum(heights) <= drawing.MAX_IN
    heights = heights[: 1 + with_losses]
    settings, left_out = drawing.fit(settings, int(drawing.MAX_IN / sum(heights)), "settings", in_tables=False)
    figure = Figure(figsize=(width, len(settings) * sum(heights)))
    parts = figure.subfigures(len(settings) * len(heights), 1, squeeze=False, height_ratios=heights * len(settings))
    for number, (label, rows) in enumerate(settings):
        above, *below = parts[number * len(heights) : (number + 1) * len(heights), 0]
        if label:
            above.suptitle(label, fontsize=8, x=0.01, ha="left")
        _draw_compared(above, rows, columns[0])
        for part in below:
            _draw_losses(part, rows, columns[1])
    drawing.legend(figure, drawing.method_handles(frame))
    losses = "Losses of different methods do not compare." if with_losses else ""
    cross = drawing.CROSS if (frame["status"] == "diverged").any() else ""
    drawing.caption(figure, frame, losses, cross, left_out, over_seeds=drawing.MEAN_AND_BAND)
    return figure


def _compared(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the quantities that compare between methods, by the title of their panel."""
    panels = {title: rows[rows["name"] == name] for name, title in COMPARED.items() if name in set(rows["name"])}
    averages = [score for score in tidy.scores(rows) if score.kind == "average"]
    if averages and rows.loc[rows["kind"] == "average", "samples_seen"].nunique() > 1:
        scores = rows[(rows["kind"] == "average") & (rows["name"] == averages[0].name)]
        panels = {f"{averages[0].title}, %": scores.assign(value=100 * scores["value"])} | panels
    return panels


def _draw_compared(part: SubFigure, rows: pd.DataFrame, columns: int) -> None:
    panels = _compared(rows)
    # The first panel takes the cells that are left over.
    cells = [*[next(iter(panels))] * (-len(panels) % columns), *panels]
    all_axes = part.subplot_mosaic(np.reshape(cells, (-1, columns)).tolist())
    for title, shown in panels.items():
        axes = all_axes[title]
        axes.set_title(title)
        for method in tidy.methods(rows):
            drawing.curve(axes, shown[shown["method"] == method], method, marked=bool(shown["is_main"].all()))
        if title == COMPARED["grad_norm"]:
            drawing.log_axis(axes, "y")
        drawing.samples_axis(axes)


def _draw_losses(part: SubFigure, rows: pd.DataFrame, columns: int) -> None:
    methods = tidy.methods(rows)[::-1]
    all_axes = drawing.grid(part, len(methods), columns)
    for axes, method in zip(all_axes, methods, strict=True):
        axes.set_title(style.method(method).name)
        drawing.curve(axes, rows[(rows["name"] == LOSS) & (rows["method"] == method)], method)
        drawing.samples_axis(axes)
    for axes in all_axes[::columns]:
        axes.set_ylabel("Loss")
