"""What a method reaches in how many hours of training. Measured, so never twice the same."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, stats, style
from analysis import frame as tidy
from analysis.rendering import short

KINDS = ("average", "cost")
# The smoke suite is there to compare bytes, and says nothing about methods; variants are not drawn.
SUITES = ("!smoke", "!ablation_*")
MAX_PANELS = 9


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """Draw one panel per setting, device and commit: the first average at each milestone against hours."""
    frame = tidy.main_runs(frame)
    rows = _with_hours(frame)
    if rows.empty:
        return drawing.nothing("No quality against time: no main run of this suite was timed and evaluated.")
    mixed = [column for column in ("device", "commit") if rows[column].nunique() > 1]
    panels = [
        (", ".join(filter(None, [label, *(short(str(part[column].iloc[0])) for column in mixed)])), part)
        for label, of_setting in tidy.settings(rows)
        for _, part in of_setting.groupby(["device", "commit"], sort=False)
    ]
    panels, left_out = drawing.fit(panels, MAX_PANELS, "panels")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = style.PAGE_IN if columns > 1 else style.COLUMN_IN
    figure = Figure(figsize=(width, 1.9 * lines + 0.6))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, part) in zip(grid.flat, panels, strict=False):
        axes.set_title(title)
        _draw(axes, part)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{rows['title'].iloc[0]}, %")
    drawing.legend(figure, rows)
    device = "" if "device" in mixed else f" On {rows['device'].iloc[0]}."
    apart = " Panels differ in device or commit and do not compare." if mixed else ""
    text = f"Time: steps times the median step, so without evaluation and waiting.{device}{apart}{left_out}"
    drawing.caption(figure, rows, text, over_seeds=" Bar: 95 % interval of the mean over seeds.")
    return figure


def _with_hours(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the first average's rows, with a column `hours`."""
    averages = [score.name for score in tidy.scores(frame) if score.kind == "average"]
    rows = frame[(frame["kind"] == "average") & frame["name"].isin(averages[:1])]
    step_sec = frame[frame["name"] == "median_step_sec"].set_index("run_id")["value"]
    steps = rows["samples_seen"] / rows["global_batch_size"]
    rows = rows.assign(hours=steps * rows["run_id"].map(step_sec).astype(float) / 3600, value=100 * rows["value"])
    return rows.dropna(subset=["hours", "value"])


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    longest = rows["hours"].max()
    unit, factor = ("h", 1) if longest > 1 else ("min", 60) if longest > 1 / 60 else ("s", 3600)
    for method in tidy.methods(rows):
        look = style.method(method)
        points = rows[rows["method"] == method].groupby("samples_seen")
        hours, means = factor * points["hours"].mean(), points["value"].mean()
        reach = points["value"].agg(stats.half_width)
        axes.plot(hours, means, color=look.color, marker=look.marker, label=look.name, **style.emphasis(method))
        axes.errorbar(hours, means, reach, color=look.color, linestyle="", alpha=0.4, elinewidth=2.0, label="interval")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Training, {unit}")
