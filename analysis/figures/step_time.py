"""Where the time of a training step goes, by phase. Measured, so never twice the same."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis import drawing, style
from analysis import frame as tidy
from analysis.rendering import short

KINDS = ("cost",)
# The smoke suite is there to compare bytes, and says nothing about methods.
SUITES = ("!smoke",)
# From light to dark, so that they are told apart in grey; the method's own work in the colour of ours.
PHASES = {"data": "#E3E3E3", "encoder": "#A9C7DF", "method": "#D55E00", "optimizer": "#3F4A54"}
MAX_IN = 8.0
"""Height of all panels together."""


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """Draw one panel per setting, device and commit, one bar per method: the median step, split as all time is."""
    frame = tidy.main_runs(frame)
    if not (frame["name"] == "median_step_sec").any():
        return drawing.nothing("No step times: no main run of this suite was timed.")
    mixed = [column for column in ("device", "commit") if frame[column].nunique() > 1]
    panels = [
        (", ".join(filter(None, [label, *(short(str(rows[column].iloc[0])) for column in mixed)])), rows)
        for label, part in tidy.settings(frame)
        for _, rows in part.groupby(["device", "commit"], sort=False)
    ]
    heights = [0.35 + 0.17 * rows["method"].nunique() for _, rows in panels]
    panels, left_out = drawing.fit(panels, max(1, int(MAX_IN / max(heights))), "panels")
    heights = heights[: len(panels)]
    figure = Figure(figsize=(style.COLUMN_IN, sum(heights) + 0.75))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(grid, panels, strict=True):
        axes.set_title(title)
        _draw(axes, rows)
    grid[-1].set_xlabel("Median step, ms")
    handles = [Patch(color=color, label=phase) for phase, color in PHASES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1, columnspacing=1)
    device = "" if "device" in mixed else f"On {frame['device'].iloc[0]}."
    apart = " Panels differ in device or commit and do not compare." if mixed else ""
    drawing.caption(figure, frame, f"{device}{apart}{left_out}", over_seeds=" Means over seeds.")
    return figure


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    methods = tidy.methods(rows)
    for y, method in enumerate(methods):
        runs = rows[rows["method"] == method].pivot_table(index="run_id", columns="name", values="value")
        clocks = runs.reindex(columns=[f"clock_sec/{phase}" for phase in PHASES]).fillna(0)
        shares = clocks.div(clocks.sum(axis=1), axis=0)
        left = 0.0
        for phase, color in PHASES.items():
            width = float(1e3 * (runs["median_step_sec"] * shares[f"clock_sec/{phase}"]).mean())
            axes.barh(y, width, 0.68, left=left, color=color, label=phase, linewidth=0)
            left += width
        drawing.row_number(axes, y, f"{left:.3g}", method)
    axes.set_yticks(range(len(methods)), [style.method(method).name for method in methods])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
