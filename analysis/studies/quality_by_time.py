"""Scores against training time. Time is measured, so never twice the same."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing
from analysis import frame as tidy

KINDS = ("average", "cost")
LINE_IN = 1.9


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw the first average at each milestone against device hours, one panel per setting, device and commit."""
    frame = tidy.main_runs(frame)
    rows = _with_hours(frame[~tidy.moved(frame)])
    if rows.dropna(subset=["value"])["method"].nunique() < 2:
        return None
    longest = rows.loc[rows["value"].notna(), "hours"].max()
    unit, factor = ("hours", 1) if longest > 1 else ("minutes", 60) if longest > 1 / 60 else ("seconds", 3600)
    panels = drawing.timed(rows.assign(hours=factor * rows["hours"]))
    shown = drawing.arrange(panels, width, panel_in=2.2, line_in=LINE_IN, what="panels", in_tables=False)
    figure, all_axes = shown.draw(sharey=True, ylabel=f"{rows['title'].iloc[0]}, %")
    for axes, (title, part) in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, title, shown.panel_in)
        _draw(axes, part, unit)
    drawing.legend(figure, drawing.method_handles(rows))
    text = "Time: steps times the median step times devices, so without evaluation and waiting."
    where = drawing.where_timed(rows)
    cross = drawing.CROSS if (rows["status"] == "diverged").any() else ""
    over_seeds = drawing.MEAN_AND_BAND if _has_band(rows) else "Line: mean over seeds."
    drawing.caption(
        figure,
        rows,
        text,
        cross,
        where,
        shown.left_out,
        over_seeds=over_seeds,
    )
    return figure


def _with_hours(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the first average's rows and add `hours`, the mean over seeds, so that a milestone is one point."""
    averages = [score.name for score in tidy.scores(frame) if score.kind == "average"]
    rows = frame[(frame["kind"] == "average") & frame["name"].isin(averages[:1])]
    factors = ["median_step_sec", "num_processes"]
    costs = frame[frame["name"].isin(factors)].pivot(index="run_id", columns="name", values="value")
    step_sec = costs.reindex(index=rows["run_id"], columns=factors).prod(axis=1, skipna=False).to_numpy()
    hours = rows["samples_seen"] / rows["global_batch_size"] * step_sec / 3600
    rows = rows.assign(hours=hours, value=100 * rows["value"]).dropna(subset=["hours"])
    alike = [*tidy.SETTING, "device", "commit", "method", "samples_seen"]
    return rows.assign(hours=rows.groupby(alike)["hours"].transform("mean"))


def _has_band(rows: pd.DataFrame) -> bool:
    """Tell whether finished seeds of one method differ anywhere on one device."""
    finished = rows[rows["status"] != "diverged"]
    spread = finished.groupby([*tidy.SETTING, "device", "commit", "method", "samples_seen"])["value"].agg(
        ["min", "max"]
    )
    return bool((spread["max"] > spread["min"]).any())


def _draw(axes: Axes, rows: pd.DataFrame, unit: str) -> None:
    for method in tidy.methods(rows):
        drawing.curve(axes, rows[rows["method"] == method], method, x="hours", marked=True)
    # Room for half a marker, so that none is cut at the frame.
    axes.set_xlim(0, 1.04 * axes.dataLim.x1)
    axes.set_xlabel(f"Training, device {unit}")
