"""What several figures draw: curves with bands over seeds, intervals, legends, and the word that there is nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TypeVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import frame as tidy
from analysis import stats, style

DASHED = (0, (3, 2))
CAPTION_LETTERS_PER_IN = 21
MAX_PANELS = 18
"""Panels of one figure: more would not fit a page."""
MAX_PLAIN_RATIO = 1e3
"""Largest over smallest value of a logarithmic axis up to which numbers are written out."""
MEAN_AND_INTERVAL = " Marker: mean; bar: its 95 % interval (t, cut at the edge); dots: seeds."
MEAN_AND_BAND = " Line: mean over seeds; band: lowest to highest seed."


Item = TypeVar("Item")


def fit(items: Sequence[Item], most: int, what: str) -> tuple[list[Item], str]:
    """Keep what fits a page; returns it, and a sentence for the caption if something is left out."""
    left_out = len(items) - most
    note = f" Not drawn for want of room: {left_out} further {what}; tables have all." if left_out > 0 else ""
    return list(items[:most]), note


def nothing(reason: str) -> Figure:
    """Return a figure that says why it shows nothing: an empty one could be an error."""
    figure = Figure(figsize=(style.PAGE_IN, 0.5))
    figure.text(0.5, 0.5, reason, ha="center", va="center", color=style.MUTED)
    return figure


def curve(axes: Axes, rows: pd.DataFrame, method: str, *, x: str = "samples_seen", marked: bool = False) -> None:
    """Draw the mean of `value` over seeds, and a band from the lowest to the highest seed.

    A diverged run would make the mean jump where it ends: it is left out, and drawn as a thin line up to a cross.
    """
    look = style.method(method)
    diverged = rows["run_id"].isin(rows.loc[rows["status"] == "diverged", "run_id"])
    seeds = rows[~diverged].groupby(x)["value"].agg(["mean", "min", "max"]).dropna()
    marker = look.marker if marked else ""
    axes.plot(seeds.index, seeds["mean"], color=look.color, marker=marker, label=look.name, **style.emphasis(method))
    if (seeds["max"] > seeds["min"]).any():
        axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=look.color, alpha=0.15, linewidth=0)
    for _, run in rows[diverged].dropna(subset=["value"]).groupby("run_id"):
        axes.plot(run[x], run["value"], color=look.color, linewidth=0.7, alpha=0.7)
        axes.plot(run[x].iloc[-1], run["value"].iloc[-1], "x", color=look.color, markeredgewidth=1.2, zorder=4)


def interval(axes: Axes, y: float, mean: float, half_width: float, method: str) -> None:
    """Draw a mean with a bar for its interval, in a row of a dot plot."""
    look, emphasis = style.method(method), style.emphasis(method)["zorder"]
    if not math.isnan(half_width):
        ends = [mean - half_width, mean + half_width]
        axes.plot(ends, [y, y], color=look.color, alpha=0.25, linewidth=4.5, solid_capstyle="butt", zorder=emphasis)
    axes.plot(
        mean,
        y,
        linestyle="",
        marker=look.marker,
        markersize=5.5 if method == style.OURS else 4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        color=look.color,
        label=look.name,
        zorder=emphasis + 1,
    )


def seeds_and_interval(axes: Axes, y: float, values: pd.Series, method: str) -> None:
    """Draw the mean of `values`, its 95 % interval, and below it a dot for each of several values."""
    values = values.dropna()
    if len(values):
        interval(axes, y, float(values.mean()), stats.half_width(values), method)
    if len(values) > 1:
        axes.scatter(values, [y - 0.33] * len(values), s=3.5, color=style.method(method).color, linewidths=0, zorder=3)


def label_rows(axes: Axes, labels: list[str], values: pd.Series, ours: list[int]) -> None:
    """Set up a dot plot with one labelled row per method, bottom to top; the rows in `ours` stand out.

    The axis covers `values` and somewhat more than as much again on both sides: room for every interval from three
    seeds on, while those from two, many times as wide, are cut and squeeze nothing.
    """
    color = style.method(style.OURS).color
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-1.05, len(labels) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10]))
    for y in ours:
        axes.axhspan(y - 0.5, y + 0.5, color=color, alpha=0.07, linewidth=0, zorder=0)
    for tick in axes.get_yticklabels():
        if tick.get_position()[1] in ours:
            tick.set(fontweight="bold", color=color)
    low, high = values.min(), values.max()
    reach = 1.2 * (high - low) or 1.0
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, low - reach), min(right, high + reach))


def chance(axes: Axes, level: float) -> None:
    """Mark what guessing scores: by a line, or by its value at the edge when that is far from the data."""
    if math.isnan(level):
        return
    low, high = axes.get_xlim()
    text, x = f"\N{LEFTWARDS ARROW} chance {level:.1f}", low
    if low - 0.5 * (high - low) < level < high:
        text, x = "chance", level
        axes.axvline(level, color=style.MUTED, linestyle=DASHED, linewidth=0.8, label="chance", zorder=1)
        axes.set_xlim(min(low, level - 0.04 * (high - low)), high)
    axes.annotate(
        text,
        (x, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(2, 0),
        textcoords="offset points",
        fontsize=5.5,
        color=style.MUTED,
    )


def row_number(axes: Axes, y: float, text: str, method: str) -> None:
    """Write a number to the right of a row."""
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=6.5,
        color=style.method(method).color if method == style.OURS else style.INK,
        fontweight="bold" if method == style.OURS else "normal",
    )


def samples_axis(axes: Axes, *, label: bool = True) -> None:
    """Count samples seen from 0, in k, M and G."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    if label:
        axes.set_xlabel("Samples seen")


def log_axis(axes: Axes, name: str) -> None:
    """Make an axis logarithmic; over few decades with plain numbers at 1, 2 and 5. Call it after drawing."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < MAX_PLAIN_RATIO * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, frame: pd.DataFrame, *others: Line2D) -> None:
    """Put one legend above all panels, ours first."""
    handles = []
    for name in reversed(tidy.methods(frame)):
        look, width = style.method(name), style.emphasis(name)["linewidth"]
        handles.append(Line2D([], [], color=look.color, marker=look.marker, linewidth=width, label=look.name))
    handles += others
    columns = int(figure.get_figwidth() / 0.95)
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def caption(figure: Figure, frame: pd.DataFrame, text: str, *, over_seeds: str) -> None:
    """Say below all panels which runs are shown and how; `over_seeds` only if there are several."""
    text = f"Runs: {tidy.describe(frame)}. {text}".strip() + (over_seeds if frame["seed"].nunique() > 1 else "")
    text = textwrap.fill(text, int(figure.get_figwidth() * CAPTION_LETTERS_PER_IN))
    figure.supxlabel(text, fontsize=6, color=style.MUTED, x=0.01, ha="left")
