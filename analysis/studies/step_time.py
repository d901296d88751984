"""Time of a training step by phase. It is measured, so never twice the same."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("cost",)
# Phases differ in lightness and hatching, so that grey prints show them. No method has the colour of "method".
PHASES: dict[str, dict[str, Any]] = {
    "data": {"facecolor": "#A6A6A6"},
    "extra": {"facecolor": "#E3E3E3", "hatch": "...."},
    "encoder": {"facecolor": "#9FB4C6", "hatch": "////"},
    "method": {"facecolor": "#F0E442"},
    "optimizer": {"facecolor": "#3F4A54"},
}
EDGE: dict[str, Any] = {"edgecolor": "white", "linewidth": 0}
"""The colour of hatches."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw a bar per method: its median step, split like the total time; one panel per setting, device, commit."""
    frame = tidy.main_runs(frame)
    frame = frame[~tidy.moved(frame)]
    if not (frame["name"] == "median_step_sec").any():
        return None
    panels = drawing.timed(frame)
    height = 0.35 + 0.17 * max(rows["method"].nunique() for _, rows in panels)
    shown = drawing.arrange(panels, width, panel_in=3.0, line_in=height, what="panels")
    figure, all_axes = shown.draw()
    figure.set_figheight(figure.get_figheight() + 0.15)  # for the labels below
    for axes, (title, rows) in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, title, shown.panel_in)
        _draw(axes, rows)
    for axes in all_axes[-shown.columns :]:
        axes.set_xlabel("Median step, ms")
    timed = {name.removeprefix("clock_sec/") for name in frame["name"].unique()}
    drawing.legend(figure, [Patch(label=phase, **look, **EDGE) for phase, look in PHASES.items() if phase in timed])
    drawing.caption(figure, frame, drawing.where_timed(frame), shown.left_out, over_seeds="Means over seeds.")
    return figure


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    methods = tidy.methods(rows)
    for y, method in enumerate(methods):
        runs = rows[rows["method"] == method].pivot_table(index="run_id", columns="name", values="value")
        # Only some methods ask for pairs beyond the batch.
        phases = {phase: look for phase, look in PHASES.items() if f"clock_sec/{phase}" in runs}
        clocks = runs[[f"clock_sec/{phase}" for phase in phases]].fillna(0)
        shares = clocks.div(clocks.sum(axis=1), axis=0)
        left = 0.0
        for phase, look in phases.items():
            width = float(1e3 * (runs["median_step_sec"] * shares[f"clock_sec/{phase}"]).mean())
            axes.barh(y, width, 0.68, left=left, label=phase, **look, **EDGE)
            left += width
        drawing.row_number(axes, y, f"{left:.3g}", method)
    drawing.name_rows(axes, [style.method(method).name for method in methods])
    drawing.mark_labels(axes, [y for y, method in enumerate(methods) if method == style.OURS])
    axes.set_xlim(left=0)
